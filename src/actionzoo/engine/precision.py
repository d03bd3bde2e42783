"""Arithmetic in reduced precision, and the precision check that finds broken kernels.

fp32    float32 throughout: 24 significant bits
tf32    float32, but matrix units may round the inputs of convolutions to 11 bits (NVIDIA, from Ampere on)
bf16    convolutions in bfloat16: 8 bits, the range of float32
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
"""Norm of the difference to fp32 over fp32's norm, of one layer's output or gradient. Rounding stays well below; broken
kernels, of which there have been several for 3-D convolutions in bfloat16, exceed it."""


def set_tf32(precision: Precision) -> None:
    """Let convolutions and matrix products use TF32, or forbid it: torch's own default differs between versions."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a forward pass and its loss are computed."""
    if precision in ("fp32", "tf32"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute a forward pass in `precision`; restores the TF32 settings afterwards."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_tf32(precision)
    try:
        with autocast(precision, device):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return a gradient scaler, which does nothing unless `precision` is fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@torch.no_grad()
def check_precision(model: nn.Module, clips: Tensor, precision: Precision) -> str:
    """Compare every convolution and matrix product, forward and backward, with fp32; return the result as a line.

    clips (N, 3, T, H, W) pass through the network in fp32, and each layer computes its input once more in `precision`.
    So the comparison sees the rounding of single layers, not its accumulation over a hundred layers. Weights,
    statistics and random generators are left as they were. Raises UserError if a layer exceeds LARGEST_ERROR.
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
            f"runtime.precision {precision} is wrong on this machine: {worst} differs from fp32 by {errors[worst]:.1e} "
            f"of its norm; rounding alone stays below {limit}. A kernel is broken (torch {torch.__version__}, cuDNN "
            f"{_cudnn_version()}); set runtime.precision to fp32, or install another torch"
        )
    return (
        f"precision check: {precision} differs from fp32 by at most {errors[worst]:.1e} of the norm ({worst}), in "
        f"{len(errors)} layers forward and backward"
    )


def _pass(module: nn.Module, input: Tensor, precision: Precision) -> tuple[Tensor, ...]:
    """Return the output, and the gradients of input and weight for a random gradient that is always the same."""
    set_tf32(precision)
    input, weight = input.detach().requires_grad_(), module.get_parameter("weight").detach().requires_grad_()
    with autocast(precision, input.device):
        output: Tensor = torch.func.functional_call(_Bare(module), {"module.weight": weight}, (input,))
    generator = torch.Generator(output.device).manual_seed(0)
    gradient = torch.randn(output.shape, device=output.device, generator=generator)
    set_tf32(precision)
    gradients = torch.autograd.grad(output, (input, weight), gradient.to(output.dtype))
    set_tf32("fp32")
    return tuple(tensor.detach().float() for tensor in (output, *gradients))


class _Bare(nn.Module):
    """A layer whose forward hooks are not called."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.module.forward(input)
        return output


def _distance(found: Tensor, exact: Tensor) -> float:
    difference, norm = torch.linalg.vector_norm(found - exact), torch.linalg.vector_norm(exact)
    return float(difference / norm.clamp(min=1e-12))


def _cudnn_version() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch has no type
    return version
