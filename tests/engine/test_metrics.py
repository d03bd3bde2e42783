import numpy as np
import pytest
import torch

from actionzoo.engine.evaluate import average_views
from actionzoo.engine.metrics import mean_class_accuracy, top_k_accuracy
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


def test_views_are_averaged_after_the_softmax_or_before():
    logits = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    assert average_views(logits, 2, "score").tolist() == [[2.0, 1.0]]
    expected = (logits.softmax(1)[0] + logits.softmax(1)[1]) / 2
    assert average_views(logits, 2, "prob")[0].tolist() == pytest.approx(expected.tolist())


def test_accuracies_are_the_references():
    cases = read_reference("evaluation/metrics.json")["cases"]
    checked = 0
    for case in cases:
        if "tie" in case["kind"]:
            continue
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


def test_averages_are_the_references():
    for case in read_reference("evaluation/average_clips.json")["cases"]:
        logits = torch.tensor(case["cls_score"])
        for kind in ("prob", "score"):
            known = torch.tensor(case[f"average_clips_{kind}"]["values"])
            torch.testing.assert_close(average_views(logits, case["num_segs"], kind), known, rtol=0, atol=1e-6)
