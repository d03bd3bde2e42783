"""Error analysis, on numbers that can be checked by hand."""

import csv
import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.manifest import label_map, read_manifest
from actionzoo.report.error_analysis import (
    STRIP_FRAMES,
    STRIP_HEIGHT,
    ClipScores,
    ConfusedPair,
    read_error_analysis,
    write_error_analysis,
)
from actionzoo.run_files import RunFiles

ABC = ["an apple", "a \"quoted\", 'odd' | name", "c"]


def scored(clips, classes=ABC):
    labels = np.array([label for label, _ in clips.values()])
    return ClipScores(list(clips), labels, np.array([scores for _, scores in clips.values()]), classes)


def analyse(test, clips, data_folder, files, fingerprint="f"):
    return write_error_analysis(test, clips, data_folder, files, fingerprint=fingerprint)


FIVE = scored(
    {
        "e": (1, [0.2, 0.3, 0.5]),
        "a": (0, [0.7, 0.2, 0.1]),
        "b": (0, [0.1, 0.8, 0.1]),
        "c": (0, [0.05, 0.9, 0.05]),
        "d": (1, [0.4, 0.4, 0.2]),
    }
)


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path, "demo", "row")


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_classes_are_counted_label_by_label_and_one_without_clips_has_no_accuracy(files):
    analyse(FIVE, [], files.root, files)
    assert [list(line.values()) for line in lines(files.plot("classes"))] == [
        [ABC[0], "3", "1", "0.333333"],
        [ABC[1], "2", "1", "0.5"],  # of d's equal scores the later class counts, as in top1
        [ABC[2], "0", "0", ""],
    ]


def test_confusion_has_a_line_per_clip_in_the_order_of_their_ids(files):
    analyse(FIVE, [], files.root, files)
    found = [tuple(line.values()) for line in lines(files.plot("confusion"))]
    assert found == [(ABC[0], ABC[0]), (ABC[0], ABC[1]), (ABC[0], ABC[1]), (ABC[1], ABC[1]), (ABC[1], ABC[2])]
    assert read_error_analysis(files).matrix.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]


def test_accuracy_by_views_is_kept_as_it_comes(files):
    by_views = [{"views": 1, "top1": 0.4, "top5": 1.0}, {"views": 2, "top1": 2 / 3, "top5": 1.0}]
    analyse(dataclasses.replace(FIVE, by_views=by_views), [], files.root, files)
    assert files.plot("views").read_text() == '"views","top1","top5"\n1,0.4,1.0\n2,0.666667,1.0\n'
    assert read_error_analysis(files).by_views == [(1, 0.4, 1.0), (2, 0.666667, 1.0)]


def test_pairs_come_by_their_number_and_worst_clips_by_their_loss(files):
    analyse(FIVE, [], files.root, files)
    analysis = read_error_analysis(files)
    assert analysis.pairs == [
        ConfusedPair(actual=ABC[0], predicted=ABC[1], clips=2, of=3),
        ConfusedPair(actual=ABC[1], predicted=ABC[2], clips=1, of=2),
    ]
    assert [(clip.video_id, clip.probability, clip.actual_probability, clip.loss) for clip in analysis.worst] == [
        ("c", 0.9, 0.05, 2.9957),
        ("b", 0.8, 0.1, 2.3026),
        ("e", 0.5, 0.3, 1.204),
    ]
    assert all(clip.strip is None and "no usable clip" in clip.fault for clip in analysis.worst)


@pytest.fixture(scope="module")
def data_folder(tiny_data):
    return tiny_data / "data/demo/videos_256"


@pytest.fixture(scope="module")
def every_clip_wrong(data_folder):
    clips = [clip for clip in read_manifest(data_folder / "manifest.csv") if clip.split == "val" and clip.is_usable]
    classes = label_map(clips)
    scores = [0.0] * len(classes)
    wrong = {clip.video_id: (clip.label, [*scores]) for clip in clips}
    for label, row in wrong.values():
        row[(label + 1) % len(classes)] = 1.0
    return scored(wrong, classes), clips


def test_a_strip_shows_frames_from_all_over_the_clip(files, data_folder, every_clip_wrong):
    made, clips = every_clip_wrong
    analyse(made, clips, data_folder, files)
    analysis = read_error_analysis(files)
    assert len(analysis.worst) == min(12, len(clips)) and analysis.worst[0].strip == "01.jpg"
    for worst in analysis.worst:
        (clip,) = [clip for clip in clips if clip.video_id == worst.video_id]
        strip = cv2.imread(str(analysis.folder / worst.strip))
        width = round(clip.width * STRIP_HEIGHT / clip.height)
        assert strip.shape == (STRIP_HEIGHT, STRIP_FRAMES * width, 3)
        first, last = strip[:, :width].astype(int), strip[:, -width:].astype(int)
        assert np.abs(first - last).mean() > 1  # the made-up clips move


def test_a_clip_that_is_lost_by_now_is_named_and_the_others_are_shown(files, data_folder, every_clip_wrong):
    made, clips = every_clip_wrong
    analyse(made, clips[1:], data_folder, files)
    lost = [clip for clip in read_error_analysis(files).worst if clip.strip is None]
    assert [clip.video_id for clip in lost] == [clips[0].video_id]


def test_equal_scores_and_clips_give_equal_files(tmp_path, data_folder, every_clip_wrong):
    made, clips = every_clip_wrong
    shuffled = ClipScores(made.video_ids[::-1], made.labels[::-1], made.probabilities[::-1], made.classes)
    seen = []
    for name, content in [("one", made), ("two", shuffled)]:
        written = analyse(content, clips, data_folder, RunFiles(tmp_path / name, "demo", "row"))
        seen.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written})
    assert seen[0] == seen[1] and {"classes.csv", "confusion.csv", "errors.json", "01.jpg"} < seen[0].keys()


def test_files_of_another_evaluation_are_replaced(files, data_folder, every_clip_wrong):
    made, clips = every_clip_wrong
    analyse(made, clips, data_folder, files)
    fewer = ClipScores(made.video_ids[:1], made.labels[:1], made.probabilities[:1], made.classes)
    analyse(fewer, clips, data_folder, files, "g")
    assert sorted(path.name for path in read_error_analysis(files).folder.iterdir()) == [
        "01.jpg",
        "confusion.svg",
        "errors.json",
    ]


def test_files_that_do_not_go_together_are_named(files):
    analyse(FIVE, [], files.root, files)
    Path(files.plot("confusion")).write_text("actual,predicted\nan apple,a pear\n")
    with pytest.raises(UserError, match=r"row/errors.*a pear.*dvc repro evaluate@row"):
        read_error_analysis(files)
    assert read_error_analysis(RunFiles(files.root, "demo", "another")) is None
    assert json.loads((files.errors / "errors.json").read_text())["fingerprint"] == "f"


def test_a_class_that_is_a_formula_runs_in_no_table_and_reads_back(files):
    classes = ['=HYPERLINK("http://example.org")', "'=1", "c"]
    analyse(scored({"a": (0, [0.1, 0.8, 0.1]), "b": (1, [0.1, 0.8, 0.1])}, classes), [], files.root, files)
    assert [line["class"] for line in lines(files.plot("classes"))] == [f"'{name}" for name in classes[:2]] + ["c"]
    assert list(lines(files.plot("confusion"))[0].values()) == [f"'{name}" for name in classes[:2]]
    assert read_error_analysis(files).classes == classes


def test_files_of_a_newer_version_are_refused(files):
    analyse(FIVE, [], files.root, files)
    path = files.errors / "errors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with pytest.raises(UserError, match=r"errors\.json: format_version is 9.*dvc repro evaluate@row"):
        read_error_analysis(files)


@pytest.mark.parametrize(
    "change", [{"strip": "../../secret.jpg"}, {"strip": 3}, {"loss": "much"}, {"loss": float("nan")}, {"actual": None}]
)
def test_a_worst_clip_with_other_values_than_were_written_is_refused(files, change):
    analyse(FIVE, [], files.root, files)
    path = files.errors / "errors.json"
    content = json.loads(path.read_text())
    content["worst"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"row/errors and the tables .*row/classes.*do not go together"):
        read_error_analysis(files)
