"""What a test's scores show, on numbers that can be checked by hand."""

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
from actionzoo.report.error_analysis import FRAMES, HEIGHT, Scored, read_looks, write_looks

ABC = ["an apple", "a \"quoted\", 'odd' | name", "c"]


def scored(clips, classes=ABC):
    labels = np.array([label for label, _ in clips.values()])
    return Scored(list(clips), labels, np.array([scores for _, scores in clips.values()]), classes)


def look(test, clips, form, metrics, fingerprint="f"):
    return write_looks(lambda: test, clips, form, metrics, fingerprint=fingerprint)


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
def metrics(tmp_path):
    return tmp_path / "row.json"


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_classes_are_counted_label_by_label_and_one_without_clips_has_no_accuracy(metrics):
    look(FIVE, [], metrics.parent, metrics)
    assert [list(line.values()) for line in lines(metrics.with_name("row.classes.csv"))] == [
        [ABC[0], "3", "1", "0.333333"],
        [ABC[1], "2", "1", "0.5"],  # of d's equal scores the later class counts, as in top1
        [ABC[2], "0", "0", ""],
    ]


def test_confusion_has_a_line_per_clip_in_the_order_of_their_ids(metrics):
    look(FIVE, [], metrics.parent, metrics)
    found = [tuple(line.values()) for line in lines(metrics.with_name("row.confusion.csv"))]
    assert found == [(ABC[0], ABC[0]), (ABC[0], ABC[1]), (ABC[0], ABC[1]), (ABC[1], ABC[1]), (ABC[1], ABC[2])]
    assert read_looks(metrics).matrix.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]


def test_accuracy_by_views_is_kept_as_it_comes(metrics):
    by_views = [{"views": 1, "top1": 0.4, "top5": 1.0}, {"views": 2, "top1": 2 / 3, "top5": 1.0}]
    look(dataclasses.replace(FIVE, by_views=by_views), [], metrics.parent, metrics)
    assert metrics.with_name("row.views.csv").read_text() == '"views","top1","top5"\n1,0.4,1.0\n2,0.666667,1.0\n'
    assert read_looks(metrics).by_views == [(1, 0.4, 1.0), (2, 0.666667, 1.0)]


def test_pairs_come_by_their_number_and_worst_clips_by_their_loss(metrics):
    look(FIVE, [], metrics.parent, metrics)
    looks = read_looks(metrics)
    assert looks.pairs == [
        {"actual": ABC[0], "predicted": ABC[1], "clips": 2, "of": 3},
        {"actual": ABC[1], "predicted": ABC[2], "clips": 1, "of": 2},
    ]
    assert [
        (line["video_id"], line["probability"], line["actual_probability"], line["loss"]) for line in looks.worst
    ] == [
        ("c", 0.9, 0.05, 2.9957),
        ("b", 0.8, 0.1, 2.3026),
        ("e", 0.5, 0.3, 1.204),
    ]
    assert all(line["strip"] is None and "no usable clip" in line["fault"] for line in looks.worst)


@pytest.fixture(scope="module")
def form(tiny_data):
    return tiny_data / "data/demo/videos_256"


@pytest.fixture(scope="module")
def every_clip_wrong(form):
    clips = [clip for clip in read_manifest(form / "manifest.csv") if clip.split == "val" and clip.is_usable]
    classes = label_map(clips)
    scores = [0.0] * len(classes)
    wrong = {clip.video_id: (clip.label, [*scores]) for clip in clips}
    for label, row in wrong.values():
        row[(label + 1) % len(classes)] = 1.0
    return scored(wrong, classes), clips


def test_a_strip_shows_frames_from_all_over_the_clip(metrics, form, every_clip_wrong):
    made, clips = every_clip_wrong
    look(made, clips, form, metrics)
    looks = read_looks(metrics)
    assert len(looks.worst) == min(12, len(clips)) and looks.worst[0]["strip"] == "01.jpg"
    for line in looks.worst:
        (clip,) = [clip for clip in clips if clip.video_id == line["video_id"]]
        strip = cv2.imread(str(looks.folder / line["strip"]))
        width = round(clip.width * HEIGHT / clip.height)
        assert strip.shape == (HEIGHT, FRAMES * width, 3)
        first, last = strip[:, :width].astype(int), strip[:, -width:].astype(int)
        assert np.abs(first - last).mean() > 1  # the made-up clips move


def test_a_clip_that_is_lost_by_now_is_named_and_the_others_are_shown(metrics, form, every_clip_wrong):
    made, clips = every_clip_wrong
    look(made, clips[1:], form, metrics)
    lost = [line for line in read_looks(metrics).worst if line["strip"] is None]
    assert [line["video_id"] for line in lost] == [clips[0].video_id]


def test_equal_scores_and_clips_give_equal_files(tmp_path, form, every_clip_wrong):
    made, clips = every_clip_wrong
    shuffled = Scored(made.video_ids[::-1], made.labels[::-1], made.probabilities[::-1], made.classes)
    seen = []
    for name, content in [("one", made), ("two", shuffled)]:
        files = look(content, clips, form, tmp_path / name / "row.json")
        seen.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert seen[0] == seen[1] and {"row.classes.csv", "row.confusion.csv", "looks.json", "01.jpg"} < seen[0].keys()


def test_what_is_of_this_result_is_not_made_again_and_what_is_of_another_is(metrics, form, every_clip_wrong):
    made, clips = every_clip_wrong
    files = look(made, clips, form, metrics)
    times = [path.stat().st_mtime_ns for path in files]
    assert (
        write_looks(pytest.fail, clips, form, metrics, fingerprint="f") == files
        and [path.stat().st_mtime_ns for path in files] == times
    )
    fewer = Scored(made.video_ids[:1], made.labels[:1], made.probabilities[:1], made.classes)
    look(fewer, clips, form, metrics, "g")
    assert sorted(path.name for path in read_looks(metrics).folder.iterdir()) == [
        "01.jpg",
        "confusion.svg",
        "looks.json",
    ]


def test_looks_that_do_not_go_together_are_named(metrics):
    look(FIVE, [], metrics.parent, metrics)
    Path(metrics.with_name("row.confusion.csv")).write_text("actual,predicted\nan apple,a pear\n")
    with pytest.raises(UserError, match=r"row\.looks.*a pear.*dvc repro evaluate@row"):
        read_looks(metrics)
    assert read_looks(metrics.with_name("another.json")) is None
    assert json.loads((metrics.parent / "row.looks/looks.json").read_text())["of"] == "f"


def test_a_class_that_is_a_formula_runs_in_no_table_and_reads_back(metrics):
    classes = ['=HYPERLINK("http://example.org")', "'=1", "c"]
    look(scored({"a": (0, [0.1, 0.8, 0.1]), "b": (1, [0.1, 0.8, 0.1])}, classes), [], metrics.parent, metrics)
    assert [line["class"] for line in lines(metrics.with_name("row.classes.csv"))] == [
        f"'{name}" for name in classes[:2]
    ] + ["c"]
    assert list(lines(metrics.with_name("row.confusion.csv"))[0].values()) == [f"'{name}" for name in classes[:2]]
    assert read_looks(metrics).classes == classes
