"""What the tests of training have in common: a plan with a constant learning rate, and what a training reported."""

import torch

from actionzoo.engine.listener import Listener
from actionzoo.engine.plan import Plan
from actionzoo.engine.schedule import Step


def constant_lr(lr, epochs):
    return Step(lr=lr, milestones=(), gamma=1.0, epochs=epochs, warmup_epochs=0, warmup_ratio=1.0)


def plan(lr=0.1, epochs=4, **settings):
    """Every clip counts once per epoch, no decay, no momentum; `settings` are fields of Plan."""
    defaults = {
        "momentum": 0.0,
        "weight_decay": 0.0,
        "accumulate": 1,
        "max_grad_norm": 40,
        "val_interval": 2,
        "log_interval": 2,
        "checkpoint_interval": 1,
    }
    return Plan(schedule=constant_lr(lr, epochs), **(defaults | settings))


def to_input(views):
    """(N, 1, T, H, W, 3) -> (N, 3, T, H, W)"""
    return views.flatten(0, -5).movedim(-1, 1)


class Recorder(Listener):
    """Keeps what a training reports."""

    def __init__(self):
        self.events: list[tuple[int, dict]] = []
        self.texts: list[str] = []

    def on_event(self, event, step):
        self.events.append((step, event))

    def on_text(self, text):
        self.texts.append(text)


def shuffled(count, epoch):
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
