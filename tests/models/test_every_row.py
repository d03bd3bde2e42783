"""Each row's network as its recipe has it takes a step of training: what shall learn moves, what shall not stays.

Rows that share network and optimiser share the step; four classes and clips of 32 x 32 pixels make it cheap.
"""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actionzoo.recipe import CSNModel, Optim, SlowFastModel
from actionzoo.zoo import build_model
from tests.models.reference import RECIPES

NUM_CLASSES = 4
FROZEN = [row for row, recipe in RECIPES.items() if recipe.model.family == "csn" and recipe.model.bn_frozen]
TRAINED = [row for row in RECIPES if row not in FROZEN]


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step did, as names of entries of the state_dict. Of the networks themselves nothing is kept."""

    loss: float
    grad_norm: float
    """After clipping."""
    parameters: frozenset[str]
    norm_affine: frozenset[str]
    """Weights and biases of batch norms."""
    norm_statistics: frozenset[str]
    moved: frozenset[str]
    """Changed by the step, be it in a single bit."""
    moved_by_evaluation: frozenset[str]
    evaluations: tuple[Tensor, Tensor]
    """Logits of the same clips in eval mode, twice."""
    dropped: float
    """Share of the pooled vector's values that dropout made zero in training; in eval mode it must leave all alone."""
    dropped_in_evaluation: float


def test_frozen_and_trained_rows_are_those_of_the_zoo():
    assert len(FROZEN) == 8 and len(TRAINED) == 9
    assert all("bnfrozen" in row for row in FROZEN) and not any("bnfrozen" in row for row in TRAINED)


@pytest.mark.slow
@pytest.mark.parametrize("row", RECIPES)
def test_loss_and_clipped_gradients_are_numbers(row):
    step = _step_of(row)

    assert math.isfinite(step.loss) and step.loss > 0
    assert 0 < step.grad_norm <= RECIPES[row].optim.max_grad_norm * (1 + 1e-5)


@pytest.mark.parametrize("row", FROZEN)
def test_frozen_batch_norm_stays_bit_for_bit_and_all_else_learns(row):
    step = _step_of(row)

    assert step.norm_affine and step.norm_statistics
    assert step.moved == step.parameters - step.norm_affine


@pytest.mark.parametrize("row", TRAINED)
def test_trained_batch_norm_moves_in_statistics_and_weights_and_all_else_learns(row):
    step = _step_of(row)

    assert step.norm_affine and step.norm_statistics
    assert step.moved == step.parameters | step.norm_statistics


@pytest.mark.parametrize("row", RECIPES)
def test_evaluation_repeats_itself_and_changes_nothing(row):
    step = _step_of(row)

    assert step.moved_by_evaluation == frozenset()
    assert torch.equal(*step.evaluations)
    assert step.evaluations[0].shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("row", RECIPES)
def test_dropout_acts_in_training_alone(row):
    step = _step_of(row)

    # hundreds of values at probability 1/2, ReLU having left the others at zero: one deviation is below 0.02
    assert step.dropped == pytest.approx(RECIPES[row].model.dropout, abs=0.08)
    assert step.dropped_in_evaluation == 0


def _step_of(row: str) -> Step:
    return _step(RECIPES[row].model, RECIPES[row].optim)


@functools.cache
def _step(section: SlowFastModel | CSNModel, optim: Optim) -> Step:
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(0)
    model = _lived_in(build_model(section, NUM_CLASSES), generator).train()
    share_dropped = []
    model.cls_head.dropout.register_forward_hook(
        lambda module, inputs, output: share_dropped.append((output[inputs[0] != 0] == 0).float().mean().item())
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    clips = torch.randn(2, 3, 32, 32, 32, generator=generator)
    before = _copy(model)

    loss = F.cross_entropy(model(clips), torch.tensor([1, 3]))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
    grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
    optimizer.step()

    moved, trained = _moved(model, before), _copy(model)
    model.eval()
    with torch.no_grad():
        evaluations = model(clips), model(clips)
    affine, statistics = _norm_entries(model)
    in_training, *in_evaluation = share_dropped
    return Step(
        loss=loss.item(),
        grad_norm=grad_norm,
        parameters=frozenset(name for name, _ in model.named_parameters()),
        norm_affine=affine,
        norm_statistics=statistics,
        moved=moved,
        moved_by_evaluation=_moved(model, trained),
        evaluations=evaluations,
        dropped=in_training,
        dropped_in_evaluation=max(in_evaluation),
    )


def _lived_in(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """With batch norms that have seen something: at their beginning SlowFast's blocks pass no gradient at all."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.uniform_(0.2, 0.6, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def _norm_entries(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Names of all batch norms' weights and biases, and of their statistics with the count of batches."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm3d)]
    return (
        frozenset(f"{name}.{entry}" for name, norm in norms for entry, _ in norm.named_parameters()),
        frozenset(f"{name}.{entry}" for name, norm in norms for entry, _ in norm.named_buffers()),
    )


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _moved(model: nn.Module, before: dict[str, Tensor]) -> frozenset[str]:
    return frozenset(name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name]))
