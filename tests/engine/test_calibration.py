import math

import pytest
import torch

from actionzoo.engine.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    tempered,
)
from actionzoo.errors import UserError


def log_probs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_error_is_how_far_confidence_is_from_accuracy():
    # two clips at 0.9, one of them right; two at 0.6, both right
    probs = log_probs([0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6])
    bins = reliability(probs, torch.tensor([0, 1, 0, 1]))
    filled = {(round(bin.low, 3), bin.clips): (bin.confidence, bin.accuracy) for bin in bins if bin.clips}
    assert filled == {(0.533, 2): (pytest.approx(0.6), 1.0), (0.867, 2): (pytest.approx(0.9), 0.5)}
    assert expected_calibration_error(bins) == pytest.approx((0.4 + 0.4) / 2)
    assert len(bins) == 15 and bins[0].confidence is None


def test_a_certain_clip_is_in_the_last_bin():
    bins = reliability(log_probs([1.0, 1e-30]), torch.tensor([0]))
    assert bins[-1].clips == 1 and expected_calibration_error(bins) == pytest.approx(0, abs=1e-12)


def test_likelihood_is_that_of_the_labels():
    probs = log_probs([0.5, 0.5], [0.9, 0.1])
    assert negative_log_likelihood(probs, torch.tensor([0, 1])) == pytest.approx((math.log(2) + math.log(10)) / 2)


def test_temperature_divides_the_logits_of_a_view():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(tempered(logits.log_softmax(1), 2.5), (logits / 2.5).log_softmax(1))


def test_the_temperature_that_was_hidden_is_found():
    """Labels drawn from known probabilities, whose logits are then three times too large."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator, dtype=torch.float64) * 2
    labels = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    loud = (logits * 3).log_softmax(1)
    temperature = fit_temperature(loud, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    before, after = (negative_log_likelihood(some, labels) for some in (loud, tempered(loud, temperature)))
    assert after < before
    for other in (temperature * 0.9, temperature * 1.1):
        assert negative_log_likelihood(tempered(loud, other), labels) > after
    assert expected_calibration_error(reliability(tempered(loud, temperature), labels)) < 0.02


def test_where_every_clip_is_right_the_temperature_is_the_least():
    assert fit_temperature(log_probs([0.9, 0.1], [0.2, 0.8]), torch.tensor([0, 1])) == pytest.approx(0.01, rel=1e-6)


def test_no_numbers_are_no_calibration():
    with pytest.raises(UserError, match="scores are NaN"):
        reliability(torch.full((1, 2), float("nan")), torch.tensor([0]))
