"""What an accuracy is of, and how sure it is."""

import hashlib

import pytest

from actionzoo.accuracy import list_sha256, wilson_interval, with_interval, with_protocol
from actionzoo.kinetics.manifest import Clip


def test_wilson_interval_is_that_of_the_textbook():
    assert wilson_interval(13, 16) == pytest.approx((0.5699, 0.9341), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def clip(video_id, label=0, split="val", state="ok"):
    return Clip(video_id=video_id, split=split, label=label, class_name="yoga", state=state)


def test_the_list_is_the_annotations_whatever_could_be_had_of_it():
    here = [clip("b", 1), clip("a"), clip("c"), clip("a", split="train"), clip("x", -1, state="unlisted")]
    there = [clip("c", state="missing"), clip("b", 1, state="corrupt"), clip("a", state="short")]
    assert list_sha256(here, "val") == list_sha256(there, "val")
    assert list_sha256(there, "val") == hashlib.sha256(b"a,0\nb,1\nc,0\n").hexdigest()
    assert list_sha256(there[:2], "val") != list_sha256(there, "val")
    assert list_sha256([clip("c", 1), *there[1:]], "val") != list_sha256(there, "val")


def test_an_accuracys_name_says_of_which_views_it_is():
    metrics = {"top1": 0.75, "top5": 1.0, "mean_class": 0.5, "top1_low": 0.2, "clips": 4, "protocol": "10x3"}
    assert with_protocol(metrics) == metrics | {
        "test/top1@10x3": 0.75,
        "test/top5@10x3": 1.0,
        "test/mean_class@10x3": 0.5,
    }


def test_the_interval_is_that_of_the_clips_evaluated():
    metrics = with_interval({"top1": 13 / 16, "clips": 16})
    assert (metrics["top1_low"], metrics["top1_high"]) == wilson_interval(13, 16)
