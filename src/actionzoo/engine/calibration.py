"""Calibration: of the clips that are classified with probability 0.8, 80 % should be right.

Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599. Scores here are (N, num_classes)
log-probabilities, labels are (N,) int64; every function raises UserError as `metrics.check_scores` does.
"""

from dataclasses import dataclass

from torch import Tensor

from .metrics import check_scores

BINS = 15
"""Number of bins of equal width, as in the paper."""

_TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True)
class Bin:
    """The clips whose best probability lies in (low, high]."""

    low: float
    high: float
    clips: int
    """Number of clips."""
    confidence: float | None
    """Mean of the clips' best probabilities; None without clips."""
    accuracy: float | None
    """Share of the clips that is right, 0 to 1; None without clips."""


def reliability(log_probs: Tensor, labels: Tensor) -> list[Bin]:
    """Return the BINS bins, those without clips included (section 2 of the paper)."""
    check_scores(log_probs, labels)
    confidence, predictions = log_probs.double().exp().max(dim=1)
    right = (predictions == labels).double()
    bin_numbers = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = bin_numbers == number
        clips = int(inside.sum())
        means = (confidence[inside].mean().item(), right[inside].mean().item()) if clips else (None, None)
        bins.append(Bin(number / BINS, (number + 1) / BINS, clips, *means))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean over clips of the distance between their bin's confidence and accuracy (equation 3)."""
    gaps = sum(
        abs(bin.confidence - bin.accuracy) * bin.clips
        for bin in bins
        if bin.confidence is not None and bin.accuracy is not None
    )
    return gaps / sum(bin.clips for bin in bins)


def negative_log_likelihood(log_probs: Tensor, labels: Tensor) -> float:
    """Return the mean over the clips, in nats."""
    check_scores(log_probs, labels)
    return -log_probs.double().gather(1, labels[:, None]).mean().item()


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """Return log softmax(log_probs / temperature), float64: softer above 1, harder below. No clip changes its class.

    For a single view this equals log softmax(logits / temperature) (temperature scaling, section 4.2).
    """
    return (log_probs.double() / temperature).log_softmax(dim=1)


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """Return the temperature with the least negative log-likelihood, within 0.01 to 100 (0.01 if all are right).

    The negative log-likelihood is convex in 1 / temperature, so its slope has one zero, found by bisection.
    """
    check_scores(log_probs, labels)
    log_probs = log_probs.double()
    of_label = log_probs.gather(1, labels[:, None]).mean()

    def slope(inverse: float) -> float:
        return ((log_probs * inverse).softmax(dim=1) * log_probs).sum(dim=1).mean().sub(of_label).item()

    low, high = (1 / temperature for temperature in reversed(_TEMPERATURES))
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    temperature: float = (low * high) ** -0.5
    return temperature
