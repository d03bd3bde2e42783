"""Pictures that say the numbers they are made of."""

import base64
import re
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np

from actionzoo.report.charts import LABELLED, confusion_chart, standalone


def test_few_classes_have_names_and_numbers():
    chart = confusion_chart(["<up>", "down"], [[3, 1], [0, 4]])
    root = ElementTree.fromstring(chart)
    texts = [element.text for element in root.iter("text")]
    assert {"<up> (0)", "down (1)", "3", "1", "4"} <= set(texts) and texts.count("0") == 1  # the label of a column
    titles = [element.text for element in root.iter("title")]
    assert "<up> predicted as down: 1 of 4" in titles


def test_many_classes_have_a_pixel_each_stronger_the_more_clips():
    count = LABELLED + 1
    matrix = np.zeros((count, count), int)
    matrix[3, 3], matrix[3, 7] = 15, 5
    chart = confusion_chart([f"class {n}" for n in range(count)], matrix.tolist())
    data = base64.b64decode(re.search(r"base64,([^\"]+)", chart)[1])
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (count, count, 4)
    alpha = pixels[..., 3]
    assert np.count_nonzero(alpha) == 2
    assert alpha[3, 3] == round(80 + 175 * 0.75**0.5) and alpha[3, 7] == round(80 + 175 * 0.25**0.5)
    blue, _, red = pixels[3, 3, :3].tolist()
    assert blue > red and pixels[3, 7, 2] > pixels[3, 7, 0]  # right is blue, wrong is orange; cv2 has BGR


def test_400_classes_stay_small():
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(30, 50, 400)) + (rng.random((400, 400)) < 0.04)
    assert len(confusion_chart([f"class {n}" for n in range(400)], matrix.tolist())) < 100_000


def test_a_chart_alone_is_an_svg_file():
    root = ElementTree.fromstring(standalone(confusion_chart(["a", "b"], [[1, 0], [0, 1]])))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.find("{*}style") is not None
