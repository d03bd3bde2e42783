"""Numbers of saved view logits: subsets, several models fused, calibration."""

import json
import subprocess
import sys

import pytest
import torch

from actionzoo.engine.metrics import mean_class_accuracy, top_k_accuracy
from actionzoo.engine.views import average, read_views
from actionzoo.errors import UserError
from actionzoo.jobs.view_scores import ScoresRequest, as_text, by_number_of_views, measure
from tests.engine.view_files import views_file

CLASSES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def one(tmp_path):
    views_file(tmp_path / "one", clips=150, num_clips=5, classes=CLASSES)
    return tmp_path / "one"


@pytest.mark.parametrize("kind", ["prob", "score"])
def test_all_views_give_the_accuracies_of_the_test(one, kind):
    metrics = measure([one], ScoresRequest(average_clips=kind)).metrics
    views = read_views(one)
    scores = average(views, kind)
    assert [metrics.top1, metrics.top5] == top_k_accuracy(scores, views.labels, (1, 5))
    assert metrics.mean_class == mean_class_accuracy(scores, views.labels) and metrics.clips == 150
    assert metrics.top1_low < metrics.top1 < metrics.top1_high


def test_fewer_views_are_the_middle_clip_at_the_centre(one):
    views = read_views(one)
    metrics = measure([one], ScoresRequest(clips=1, crops=1)).metrics
    assert metrics.top1 == top_k_accuracy(views.logits[:, 2 * 5 + 2], views.labels, (1,))[0]
    with pytest.raises(UserError, match="6x3 views are asked for"):
        measure([one], ScoresRequest(clips=6))


def test_accuracy_by_number_of_views_begins_with_one_and_ends_with_all(one):
    lines = by_number_of_views(read_views(one))
    assert [line["views"] for line in lines] == list(range(1, 16))
    for line, views in ((lines[0], {"clips": 1, "crops": 1}), (lines[4], {"crops": 1}), (lines[-1], {})):
        metrics = measure([one], ScoresRequest(**views)).metrics
        assert (line["top1"], line["top5"]) == (metrics.top1, metrics.top5)


def test_models_together_are_the_weighted_mean_of_probabilities_over_the_clips_that_all_have(tmp_path):
    """Clips are matched by id, in whatever order and number they are."""
    ids = [f"clip{number:03d}" for number in range(60)]
    labels = dict(zip(ids, [number % 7 for number in range(60)], strict=True))
    views_file(tmp_path / "one", clips=50, ids=ids[:50], labels=[labels[i] for i in ids[:50]], classes=CLASSES)
    other = ids[:4:-1]
    views_file(
        tmp_path / "two", clips=55, seed=1, num_crops=1, ids=other, labels=[labels[i] for i in other], classes=CLASSES
    )
    made = measure([tmp_path / "one", tmp_path / "two"], ScoresRequest(weights=[3, 1]))
    first, second = (read_views(tmp_path / name) for name in ("one", "two"))
    place = {video_id: number for number, video_id in enumerate(second.video_ids)}
    common = ids[5:50]
    probs = average(first, "prob")[5:50] * 0.75 + average(second, "prob")[[place[i] for i in common]] * 0.25
    known = torch.tensor([labels[i] for i in common])
    assert made.metrics.top1 == top_k_accuracy(probs, known, (1,))[0] and made.metrics.clips == 45
    assert made.weights == [0.75, 0.25]
    left_out = made.left_out
    assert sorted(left_out[str(tmp_path / "one")]) == ids[:5] and sorted(left_out[str(tmp_path / "two")]) == ids[50:]
    said = as_text(made)
    assert f"10 clips of {tmp_path / 'two'}" in said and "together, 45 clips that all have" in said


def test_a_model_with_itself_is_itself(one):
    assert measure([one, one]).metrics == measure([one]).metrics


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"list_sha256": "7c"}, "another list of clips than"),
        ({"split": "test"}, "another split than"),
        ({"classes": ("a", "x")}, "1 of its 2 are none of the 2 there"),
        ({"classes": ("b", "a")}, "in another order"),
        ({"labels": [1, 1, 1]}, "clip000 has label 1 in"),
        ({"ids": ["x", "y", "z"]}, "no clip in common"),
    ],
)
def test_models_of_other_questions_are_not_fused(tmp_path, changes, said):
    views_file(tmp_path / "one")
    views_file(tmp_path / "two", **changes)
    with pytest.raises(UserError, match=said):
        measure([tmp_path / "one", tmp_path / "two"])


def test_weights_are_one_for_each_file(one):
    with pytest.raises(UserError, match="1 numbers for 2 files"):
        measure([one, one], ScoresRequest(weights=[1]))
    with pytest.raises(UserError, match="none below 0"):
        measure([one, one], ScoresRequest(weights=[2, -1]))


def test_calibration_says_on_what_its_temperature_was_fitted(one):
    made = measure([one], ScoresRequest(is_calibrated=True))
    calibration = made.calibration
    assert sum(bin.clips for bin in calibration.as_is.reliability) == 150
    assert calibration.with_temperature.nll <= calibration.as_is.nll
    assert calibration.temperature > 1  # random logits are too sure of themselves
    assert "fitted by NLL on these very clips" in as_text(made)


def test_temperature_of_raw_scores_is_that_of_their_mean(tmp_path):
    """The same logits in every view: the average's kind does not matter."""
    logits = torch.randn(40, 1, 2, generator=torch.Generator().manual_seed(3)).expand(40, 6, 2)
    views_file(tmp_path / "one", clips=40, logits=logits)
    prob, score = (
        measure([tmp_path / "one"], ScoresRequest(average_clips=kind, is_calibrated=True)) for kind in ("prob", "score")
    )
    assert prob.calibration.temperature == pytest.approx(score.calibration.temperature, rel=1e-4)


def test_views_that_are_no_numbers_are_named(tmp_path):
    logits = torch.zeros(3, 6, 2)
    logits[1, 4, 0] = float("nan")
    views_file(tmp_path / "one", logits=logits)
    with pytest.raises(UserError, match=r"^clip001: scores are NaN"):
        measure([tmp_path / "one"])


def test_the_command_prints_lines_or_json(one):
    command = [sys.executable, "-m", "actionzoo.cli", "scores", str(one), "--clips", "2", "--by-views", "--calibration"]
    text, plain = (
        subprocess.run([*command, *more], text=True, capture_output=True, check=True).stdout
        for more in ([], ["--json"])
    )
    made = json.loads(plain)
    assert f"top1_acc: {made['metrics']['top1']:.4f} (95 %" in text and "2x3 of 5x3 views" in text
    assert len(made["by_views"]) == 15 and made["files"][0]["list_sha256"] == "5a"
