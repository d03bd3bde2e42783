"""Numbers of fewer bits where they are faster, and the check that they still are the same numbers.

fp32    float32 throughout
tf32    float32, but matrix units may round inputs of convolutions to 10 bits (NVIDIA, from Ampere on)
bf16    convolutions in bfloat16: 8 bits, float32's range
fp16    convolutions in float16: 11 bits, a small range, so the loss is scaled
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

LARGEST_ERROR = {"tf32": 0.005, "bf16": 0.03, "fp16": 0.005}
"""Distance to fp32's result over its length, of one layer's output or gradient. Rounding stays well below; a broken
kernel, of which there have been several for 3-D convolutions in bfloat16, does not."""


def set_tf32(precision: Precision) -> None:
    """Let convolutions and matrix products use TF32, or forbid it: torch's own default has changed over the years."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager:
    """What a forward pass and its loss run under."""
    if precision in ("fp32", "tf32"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """A forward pass in that precision; behind the block TF32 is as it was."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_tf32(precision)
    try:
        with autocast(precision, device):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Does nothing unless precision is fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@torch.no_grad()
def check_precision(model: nn.Module, clips: Tensor, precision: Precision) -> str:
    """Compare every convolution and matrix product, forward and backward, with fp32's; gives a line on what came out.

    clips (N, 3, T, H, W) go through the network in fp32, and each layer computes once more, on what reaches it, in the
    precision: so one layer's rounding is seen, and not what hundred layers make of it. Weights, statistics and random
    numbers stay as they were. Raises UserError if a layer is further off than LARGEST_ERROR.
    """
    state = copy.deepcopy(model.state_dict())
    generators = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    errors: dict[str, float] = {}

    def compare(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        with torch.enable_grad():
            exact = _pass(module, inputs[0], "fp32")
            found = _pass(module, inputs[0], precision)
        errors[name] = max(_distance(f, e) for f, e in zip(found, exact, strict=True))

    hooks = [
        module.register_forward_hook(partial(compare, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d | nn.Linear)
    ]
    try:
        set_tf32("fp32")
        model(clips)
    finally:
        set_tf32(precision)
        for hook in hooks:
            hook.remove()
        model.load_state_dict(state)
        torch.set_rng_state(generators[0])
        if generators[1]:
            torch.cuda.set_rng_state_all(generators[1])
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    limit = LARGEST_ERROR.get(precision, 1e-5)
    if not errors[worst] <= limit:
        raise UserError(
            f"runtime.precision {precision} is off on this machine: {worst} is {errors[worst]:.1e} of fp32's length "
            f"away, and rounding stays below {limit}. A kernel is broken (torch {torch.__version__}, cuDNN "
            f"{torch.backends.cudnn.version()}); set runtime.precision to fp32, or install another torch"
        )
    where = f"at most {errors[worst]:.1e} off ({worst})"
    return f"{precision} beside fp32, {len(errors)} layers forward and backward: {where}"


def _pass(module: nn.Module, input: Tensor, precision: Precision) -> tuple[Tensor, ...]:
    """Output, and the gradients of input and weight for one and the same gradient of the output."""
    set_tf32(precision)
    input, weight = input.detach().requires_grad_(), module.weight.detach().requires_grad_()
    with autocast(precision, input.device):
        output = torch.func.functional_call(_Bare(module), {"module.weight": weight}, (input,))
    generator = torch.Generator(output.device).manual_seed(0)
    gradient = torch.randn(output.shape, device=output.device, generator=generator)
    set_tf32(precision)
    gradients = torch.autograd.grad(output, (input, weight), gradient.to(output.dtype))
    set_tf32("fp32")
    return tuple(tensor.detach().float() for tensor in (output, *gradients))


class _Bare(nn.Module):
    """A layer without its hooks."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> Tensor:
        return self.module.forward(input)


def _distance(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm().clamp(min=1e-12)).item()
