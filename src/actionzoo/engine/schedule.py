"""The learning rate of every step in closed form, so that a resumed run needs no history.

Per epoch a cosine or steps; on top of it a linear warm-up per step (the order of MMAction2: the cosine holds
its value for a whole epoch, and the last epoch does not reach min_lr).
"""

import math
from typing import Literal


def learning_rate(
    step: int,
    steps_per_epoch: int,
    *,
    lr: float,
    policy: Literal["cosine", "step"],
    epochs: int,
    warmup_epochs: int,
    warmup_ratio: float,
    min_lr: float = 0.0,
    milestones: tuple[int, ...] = (),
    gamma: float = 1.0,
) -> float:
    """For the 0-based global step, in force while that step runs."""
    epoch = step // steps_per_epoch
    if policy == "cosine":
        value = min_lr + (lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    else:
        value = lr * gamma ** sum(epoch >= milestone for milestone in milestones)
    warmup_steps = warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        value *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return value


def scaled_lr(lr: float, *, batch: int, reference_batch: int) -> float:
    """The linear scaling rule (arXiv 1706.02677): lr belongs to reference_batch, batch is what one step really sees."""
    return lr * batch / reference_batch
