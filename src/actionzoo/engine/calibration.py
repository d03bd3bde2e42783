"""Whether probabilities mean what they say: of the clips that get 0.8, 80 % should be right.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from dataclasses import dataclass

from torch import Tensor

from .metrics import check_scores

BINS = 15
"""As in the paper."""

_TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True)
class Bin:
    """The clips whose best probability lies in (low, high]."""

    low: float
    high: float
    clips: int
    confidence: float | None
    """Mean of their best probabilities; None where there are no clips."""
    accuracy: float | None


def reliability(log_probs: Tensor, labels: Tensor) -> list[Bin]:
    """The bins of (N, num_classes) log-probabilities. Raises UserError as `check_scores` does."""
    check_scores(log_probs, labels)
    confidence, predictions = log_probs.double().exp().max(dim=1)
    right = (predictions == labels).double()
    places = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = places == number
        clips = int(inside.sum())
        means = (confidence[inside].mean().item(), right[inside].mean().item()) if clips else (None, None)
        bins.append(Bin(number / BINS, (number + 1) / BINS, clips, *means))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Mean over the clips of how far their bin's confidence is from its accuracy."""
    gaps = sum(abs(bin.confidence - bin.accuracy) * bin.clips for bin in bins if bin.clips)
    return gaps / sum(bin.clips for bin in bins)


def negative_log_likelihood(log_probs: Tensor, labels: Tensor) -> float:
    """Mean over the clips, in nats."""
    check_scores(log_probs, labels)
    return -log_probs.double().gather(1, labels[:, None]).mean().item()


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities made softer (above 1) or harder: softmax(log_probs / temperature). No clip changes its class.

    Of a single view this is softmax(logits / temperature).
    """
    return (log_probs.double() / temperature).log_softmax(dim=1)


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood; at most 100 and at least 0.01, where all are right.

    In 1 / temperature that is convex: its slope has one zero, found by halving.
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
    return (low * high) ** -0.5
