"""The precision check, on a network of each family."""

import copy

import pytest
import torch
from torch import nn

from actionzoo.engine.precision import autocast, check_precision
from actionzoo.errors import UserError
from actionzoo.models.csn import CSN
from actionzoo.models.slowfast import SlowFast

CPU = torch.device("cpu")


def slowfast():
    return SlowFast(slow_depth=50, fast_depth=50, alpha=8, beta=1 / 8, fusion_kernel=5, num_classes=4, dropout=0.5)


def csn():
    return CSN(depth=50, bottleneck="ir", norm_eval=False, bn_frozen=False, num_classes=4, dropout=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("build", [slowfast, csn])
def test_rounding_passes_and_leaves_everything_as_it_was(build):
    torch.manual_seed(0)
    model = build().eval()
    clips = torch.randn(1, 3, 32, 36, 36)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    said = check_precision(model, clips, "bf16")
    assert said.startswith("precision check: bf16 differs from fp32 by at most ") and " of the norm (" in said
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters()) and all(
        module.p == 0.5 for module in model.modules() if isinstance(module, nn.Dropout)
    )


def test_a_kernel_that_is_wrong_in_few_bits_alone_is_found():
    class Broken(nn.Conv3d):
        def forward(self, input):
            out = super().forward(input)
            return out if out.dtype == torch.float32 else out.roll(1, dims=2)

    torch.manual_seed(0)
    model = nn.Sequential(Broken(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 6 * 6, 4))
    with pytest.raises(UserError, match=r"runtime\.precision bf16 is wrong on this machine"):
        check_precision(model, torch.randn(2, 3, 4, 8, 8), "bf16")


def test_fp32_runs_without_autocast():
    with autocast("fp32", CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    with autocast("bf16", CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
