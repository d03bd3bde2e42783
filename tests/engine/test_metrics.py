import numpy as np
import pytest
import torch

from actionzoo.engine.evaluate import Scores
from actionzoo.engine.metrics import mean_class_accuracy, top_k_accuracy
from actionzoo.errors import UserError
from tests.models.reference import read_reference


def test_top_k_counts_labels_among_the_k_best():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    assert top_k_accuracy(scores, torch.tensor([2, 0]), (1, 2, 3)) == [0.5, 1.0, 1.0]


def test_top_5_of_fewer_classes_is_all_of_them():
    assert top_k_accuracy(torch.eye(4), torch.tensor([3, 2, 1, 0]), (1, 5)) == [0.0, 1.0]


def test_mean_class_averages_over_classes_and_counts_one_that_is_only_predicted():
    scores = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1])  # class 0: 2 of 3; class 1: 0 of 1; class 2: predicted, never there
    assert mean_class_accuracy(scores, labels) == pytest.approx((2 / 3 + 0 + 0) / 3)


def test_a_single_clip_has_accuracies():
    scores = torch.tensor([[0.1, 0.9]])
    assert top_k_accuracy(scores, torch.tensor([1]), (1, 5)) == [1.0, 1.0]
    assert mean_class_accuracy(scores, torch.tensor([1])) == 1.0
    assert mean_class_accuracy(scores, torch.tensor([0])) == 0.0


def test_of_equal_scores_top_k_takes_the_last_and_mean_class_the_first():
    scores, labels = torch.zeros(2, 30), torch.tensor([29, 0])
    assert top_k_accuracy(scores, labels, (1,)) == [0.5]
    assert mean_class_accuracy(scores, labels) == pytest.approx((1 + 0) / 2)
    assert top_k_accuracy(scores, torch.tensor([29, 29]), (1,)) == [1.0]
    assert mean_class_accuracy(scores, torch.tensor([29, 29])) == 0.0


@pytest.mark.parametrize("measure", [top_k_accuracy, mean_class_accuracy])
def test_scores_that_are_no_numbers_have_no_accuracy(measure):
    scores = torch.tensor([[0.1, 0.9], [float("nan"), 0.2], [0.5, float("nan")]])
    with pytest.raises(UserError, match=r"clip number 1 \(2 of 3 clips\): scores are NaN"):
        measure(scores, torch.tensor([0, 1, 1]))
    with pytest.raises(UserError, match="label 2 is none of the 2 classes"):
        measure(scores[:1], torch.tensor([2]))
    with pytest.raises(UserError, match="without labels"):
        measure(scores[:1], torch.tensor([-1]))
    with pytest.raises(UserError, match="no clip"):
        measure(scores[:0], torch.tensor([], dtype=torch.int64))


def test_a_clip_is_called_by_its_name():
    scores = Scores(["a", "b"], torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]), [])
    with pytest.raises(UserError, match=r"^b: scores are NaN"):
        scores.accuracies()


def test_accuracies_are_the_references():
    cases = read_reference("evaluation/metrics.json")["cases"]
    checked = 0
    for case in cases:
        if case["scores"] is None:
            if case.get("rng_seed") != 2:
                continue
            scores = np.random.RandomState(2).rand(7, 400).round(4)
        else:
            scores = np.array(case["scores"])
        scores, labels = torch.from_numpy(scores), torch.tensor(case["labels"])
        assert top_k_accuracy(scores, labels, tuple(case["topk"])) == pytest.approx(case["top_k_accuracy"], abs=1e-9)
        assert mean_class_accuracy(scores, labels) == pytest.approx(case["mean_class_accuracy"], abs=1e-9)
        checked += 1
    assert checked >= 3
