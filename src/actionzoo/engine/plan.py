"""The settings of a training: what shapes its result, and how it is executed."""

import math
from dataclasses import dataclass

from .precision import Precision
from .schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The first block of fields shapes the result; the second does not, beyond rounding."""

    schedule: Schedule
    momentum: float
    weight_decay: float
    backbone_lr_scale: float = 1.0
    """Multiplies the learning rate of the parameters whose names begin with `backbone.`."""
    accumulate: int
    """Batches of each process whose gradients make one step."""
    max_grad_norm: float
    val_interval: int
    """Epochs from one validation to the next; the last epoch is always validated."""
    log_interval: int
    """Steps from one logged event to the next."""
    ema: float = 0.0
    """Decay per step of averaged weights, which are then the ones that are validated and kept; 0 averages nothing."""

    checkpoint_interval: int
    """Epochs from one saved state to the next, at most."""
    save_seconds: float = math.inf
    """Seconds from one saved state to the next, at most; a state may lie within an epoch."""
    keep_states: int = 2
    """Saved states to keep. The older ones serve if the newest is damaged."""
    precision: Precision = "fp32"
    is_compiled: bool = False
    """Run the network through torch.compile."""

    @property
    def epochs(self) -> int:
        return self.schedule.epochs
