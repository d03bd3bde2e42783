import pytest

from actionzoo.accuracy import comparable_top1, compare, judge
from actionzoo.recipe import Note, Percentage, Published
from actionzoo.records import Metrics


def published(*top1: str, **files: str) -> Published:
    texts = dict(config="a", gpus="8", backbone="ResNet50", pretrained="None", inference="x")
    others = dict(gpu_mem_mb=None, ckpt_model={}, ckpt=None, infer_ckpt=None, log=None, json=None)
    return Published(**texts, **others | files, top1=top1, top5=top1, note=Note())


def measured(top1: float | None = 0.8276, clips: int = 19_796, **others) -> Metrics:
    accuracies = {} if top1 is None else {"top1": top1}
    return Metrics(accuracies=accuracies, clips=clips, **{"listed": 19_796, "published_list_sha256": "ab"} | others)


def test_on_kinetics_400_by_the_unchanged_recipe_the_gap_is_in_points():
    comparison = compare("kinetics400", (), measured(0.83), Percentage("82.76"))
    assert comparison.is_comparable and comparison.reasons == ()
    assert comparison.gap_points == pytest.approx(0.24) and str(comparison.published_top1) == "82.76"


@pytest.mark.parametrize(
    ("dataset", "overrides", "clips", "reasons"),
    [
        ("demo", (), 19_796, ("data",)),
        ("demo", ("a: 1 -> 2",), 16, ("data", "recipe")),
        ("kinetics400", ("a: 1 -> 2",), 19_796, ("recipe",)),
        ("kinetics400", (), 17_816, ("part",)),  # one clip below 90 %
        ("kinetics400", ("a: 1 -> 2",), 17_816, ("recipe", "part")),
    ],
)
def test_another_data_set_recipe_or_too_few_clips_forbid_the_comparison(dataset, overrides, clips, reasons):
    comparison = compare(dataset, overrides, measured(clips=clips), 82.76)
    assert not comparison.is_comparable and comparison.gap_points is None and comparison.reasons == reasons


def test_90_per_cent_of_the_published_clips_are_enough():
    assert compare("kinetics400", (), measured(clips=17_817), 82.76).is_comparable


@pytest.mark.parametrize(
    ("metrics", "number"), [(None, 82.76), (measured(None), 82.76), (measured(), None)], ids=["run", "labels", "paper"]
)
def test_without_two_numbers_nothing_is_comparable(metrics, number):
    comparison = compare("kinetics400", (), metrics, number)
    assert not comparison.is_comparable and comparison.gap_points is None and comparison.reasons == ()


@pytest.mark.parametrize(
    ("entry", "number"),
    [
        (published("77.90", ckpt="a.pth"), "77.90"),
        (published("74.34", "73.95", ckpt="a.pth"), "73.95"),  # corrected
        (published("82.76", "82.6", ckpt="a.pth", infer_ckpt="b.pth"), "82.76"),  # that of ckpt
        (published("79.0", infer_ckpt="b.pth"), "79.0"),
        (published("79.0"), "79.0"),
    ],
)
def test_a_recipe_is_compared_with_the_number_of_its_ckpt(entry, number):
    assert str(comparable_top1(entry)) == number


def test_a_recipe_of_ones_own_has_no_published_number():
    assert comparable_top1(None) is None


@pytest.mark.parametrize(
    ("top1", "verdict"),
    [(0.8276, "reproduced"), (0.8230, "reproduced"), (0.8340, "not reproduced"), (0.8200, "not reproduced")],
)
def test_published_weights_are_reproduced_within_the_interval_of_the_published_list(top1, verdict):
    assert judge("kinetics400", (), measured(top1), 82.76)[0] == verdict


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        (measured(published_list_sha256=None), "19,796 clips, and not those of the published list"),
        (measured(clips=19_795), "1 of the 19,796 listed clips are missing or did not decode"),
        (measured(clips=17_000), "2,796 of the 19,796 listed clips are missing"),
        (measured(clips=100, listed=100), "the given list has 100 clips, the published 19,796"),
    ],
)
def test_without_all_clips_of_the_published_list_there_is_no_verdict(metrics, why):
    verdict, reason = judge("kinetics400", (), metrics, 82.76)
    assert verdict == "different data" and why in reason


def test_clips_that_differ_here_stand_beside_the_verdict():
    verdict, why = judge("kinetics400", (), measured(other_frames=1_234, other_label=2), 82.76)
    assert verdict == "reproduced"
    assert why == "+0.00 points; 1,234 clips have another number of frames; 2 clips have another label"


def test_another_data_set_or_a_changed_recipe_allows_no_verdict():
    assert judge("demo", (), measured(), 82.76) == ("different data", "this is demo")
    verdict, why = judge("kinetics400", ("test.num_crops: 3 -> 1",), measured(), 82.76)
    assert verdict == "different data" and "test.num_crops: 3 -> 1" in why
