"""The learning rate of every step in closed form, so that a resumed training needs no history.

The order is MMAction2's: cosine or milestones per epoch, times a linear warm-up per step. A cosine holds its value for
a whole epoch, so the last epoch does not reach `min_lr`.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from `lr` down to `min_lr` (arXiv 1608.03983, without restarts)."""

    lr: float
    """Of the first epoch, once warm-up is over."""
    min_lr: float
    epochs: int
    warmup_epochs: int
    warmup_ratio: float
    """Share of the learning rate that warm-up starts from (arXiv 1706.02677, section 2.2)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """`lr`, multiplied by `gamma` at each milestone."""

    lr: float
    """Of the first epoch, once warm-up is over."""
    milestones: tuple[int, ...]
    """Finished epochs after which the learning rate is multiplied by `gamma`."""
    gamma: float
    epochs: int
    warmup_epochs: int
    warmup_ratio: float
    """Share of the learning rate that warm-up starts from (arXiv 1706.02677, section 2.2)."""


Schedule = Cosine | Step


def learning_rate(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate that is in force during the 0-based global `step`."""
    epoch = step // steps_per_epoch
    match schedule:
        case Cosine(lr=lr, min_lr=min_lr):
            value = min_lr + (lr - min_lr) * (1 + math.cos(math.pi * epoch / schedule.epochs)) / 2
        case Step(lr=lr):
            value = lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        value *= 1 - (1 - step / warmup_steps) * (1 - schedule.warmup_ratio)
    return value


def scaled_lr(lr: float, *, batch: int, reference_batch: int) -> float:
    """Scale `lr` from `reference_batch` to `batch` clips per step (linear scaling, arXiv 1706.02677, section 2.1)."""
    return lr * batch / reference_batch
