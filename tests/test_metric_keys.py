import pytest

from actionzoo.metric_keys import wilson_interval, with_protocol
from actionzoo.records import Metrics


def test_wilson_interval_is_that_of_the_textbook():
    assert wilson_interval(13, 16) == pytest.approx((0.5699, 0.9341), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_an_accuracys_name_says_of_which_views_it_is():
    metrics = {"top1": 0.75, "top5": 1.0, "mean_class": 0.5, "top1_low": 0.2, "clips": 4, "protocol": "10x3"}
    assert with_protocol(metrics) == metrics | {
        "test/top1@10x3": 0.75,
        "test/top5@10x3": 1.0,
        "test/mean_class@10x3": 0.5,
    }


def test_the_interval_is_that_of_the_clips_evaluated():
    counts = Metrics(accuracies={"top1": 13 / 16}, clips=16).counts()
    assert (counts["top1_low"], counts["top1_high"]) == wilson_interval(13, 16)
