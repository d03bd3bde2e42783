"""Where the reference numbers lie, how their networks are built, and the rule that fills weights and inputs."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actionzoo.models.csn import CSN
from actionzoo.models.slowfast import SlowFast
from actionzoo.params import load_params
from actionzoo.recipe import as_dict

PROJECT = Path(__file__).resolve().parents[2]
REFERENCE = PROJECT.parent / "shared" / "reference"

# Every row of the zoo as written, without what a data set overrides.
RECIPES = load_params(PROJECT / "params.yaml").recipes

PUBLISHED = load_params(PROJECT / "params.yaml").published

# Every configuration of the zoo, and the arguments its network takes. A configuration may have two rows; their networks
# are the same.
CONFIGS = {
    PUBLISHED[row].config: {key: value for key, value in as_dict(recipe.model).items() if key != "family"}
    for row, recipe in RECIPES.items()
}


def read_reference(name: str) -> dict:
    """A JSON file of the reference numbers; skips the test where they are not beside the repository."""
    if not REFERENCE.is_dir():
        pytest.skip(f"the reference numbers are not here ({REFERENCE})")
    return json.loads((REFERENCE / name).read_text())


def build(config: str, **overrides) -> nn.Module:
    """The network of a configuration without numbers in it: on the meta device, where it costs nothing."""
    with torch.device("meta"):
        network = SlowFast if config.startswith("slowfast") else CSN
        return network(**{**CONFIGS[config], **overrides})


def build_filled(config: str, *, seed: str | None = None, **overrides) -> nn.Module:
    """The network of a configuration with every number of its state set by the rule. `seed` stands in for the name."""
    model = build(config, **overrides)
    state = {key: fill(seed or config, key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def fill(seed: str, key: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers for one entry of a state_dict, float32: they depend on the names alone, on no machine and no torch."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    z = _normal(f"{seed}:{key}", shape)
    if len(shape) == 5:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        z = 0.01 * z
    elif key.endswith("running_mean"):
        z = 0.1 * z
    elif key.endswith("running_var"):
        z = 0.75 + 0.5 * np.abs(z)
    elif key.endswith(".bn.weight"):
        z = (1 + 0.1 * z) * (0.2 if key.endswith("conv3.bn.weight") else 1)
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


def clips(input_key: str, shape: tuple[int, ...]) -> Tensor:
    """A batch for a `seed:name`; golden shapes are (batch, views, 3, T, H, W), and views become clips of the batch."""
    values = torch.from_numpy(_normal(input_key, shape).astype(np.float32))
    return values.flatten(0, 1) if values.ndim == 6 else values


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
