"""Reads weights files of every known format, without running code from them, and renames tensors to our names.

Formats are recognised by the names of the tensors:

    backbone.conv1.conv.weight   OpenMMLab's, or ours         as it is, classifier included
    conv1.conv.weight            OpenMMLab's, to start from   the backbone; its classifier is left over
    stem.0.weight                VMZ's (facebookresearch)     renamed
    s1.pathway0_stem.conv.…      PySlowFast's                 refused: other lateral connections
    blocks.0.…                   PyTorchVideo's               refused likewise
    {'blobs': …}                 Caffe2's, of PySlowFast      refused likewise

torch.load runs with weights_only and a short list of numpy's scalars; safetensors contain no code.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..engine.checkpoint import read_torch_file
from ..errors import MACHINE_ERRNOS, UserError
from ..files.hashes import sha256_of
from .identity import is_of_this_zoo

MAX_CLASSES = 1_000_000

CLASSIFIER = ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias")
"""Names of the last layer's tensors in every network of the zoo: (classes, features) and (classes,)."""


@dataclass(frozen=True)
class WeightsFile:
    """A file's tensors under the network's names, and its metadata."""

    path: Path
    sha256: str
    """Of the file, as 64 hex digits."""
    kind: str
    """The format, as people call it."""
    state: dict[str, Tensor]
    names: dict[str, str]
    """Name in the network -> name in the file."""
    not_for_us: tuple[str, ...]
    """Names in the file of a classifier that is not loaded."""
    meta: Mapping[str, object]
    """As in the file, not judged yet."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.state.items()}


# Metadata written by mmcv hold scores as numpy scalars, under numpy's old module name or its new one.
_SCALAR = cast(Any, np)._core.multiarray.scalar
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]


def read_weights(path: Path) -> WeightsFile:
    """The file's tensors and metadata. Raises UserError if it is damaged, contains code, or has no known format."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise UserError(f"{path} is empty; fetch it again")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a weights file; fetch it again, from the file's own address")
    if not head.startswith(b"PK") and b"blobs" in head:  # a plain pickle of numpy arrays: reading it would run code
        _refuse_caffe2(path)
    content = _read_safetensors(path) if head[8:9] == b"{" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__} instead of named tensors; it is not a weights file")
    if isinstance(content.get("blobs"), Mapping):
        _refuse_caffe2(path)
    if isinstance(content.get("model_state"), Mapping):
        content = {"state_dict": content["model_state"]}
    # a saved state of a training has its metadata under `about`
    meta: dict[str, Any] = next((content[key] for key in ("meta", "about") if isinstance(content.get(key), dict)), {})
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = {
        re.sub(r"^module\.", "", name): tensor
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    kind, names, not_for_us = _recognise(path, list(tensors), meta)
    return WeightsFile(
        path=path,
        sha256=sha256_of(path),
        kind=kind,
        state={new: tensors[old] for old, new in names.items()},
        names={new: old for old, new in names.items()},
        not_for_us=tuple(not_for_us),
        meta=meta,
    )


def _read_pickle(path: Path) -> Any:
    known = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([item for item in _NUMPY_SCALARS if item not in known]):
        return read_torch_file(path, "fetch it again, or from a source you know")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta = {key: _plain(value) for key, value in (file.metadata() or {}).items()}
            return {"meta": meta, "state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except OSError as error:
        if error.errno in MACHINE_ERRNOS:
            raise
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); fetch it again") from None


def _plain(text: str) -> Any:
    """Metadata of safetensors are texts; other values are JSON there in files of ours."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _recognise(path: Path, names: list[str], meta: dict[str, Any]) -> tuple[str, dict[str, str], list[str]]:
    """The format, name in the file -> name in the network, and the names of a classifier that is not loaded."""
    if any(re.match(r"s\d+(\.pathway\d_|_fuse\.)", name) for name in names):
        _refuse_pyslowfast(path, names)
    if any(re.match(r"blocks\.\d+\.", name) for name in names):
        _refuse_pytorchvideo(path, names)
    if "stem.0.weight" in names:
        is_ip = any(".conv2.0.0." in name for name in names)
        return "VMZ weights", {name: _from_vmz(name, is_ip) for name in names}, []
    if any(name.startswith("backbone.") for name in names):
        kind = "checkpoint of this zoo" if is_of_this_zoo(meta) else "OpenMMLab checkpoint"
        return kind, {name: name for name in names}, []
    if "conv1.conv.weight" in names or "slow_path.conv1.conv.weight" in names:
        head = [name for name in names if name.startswith(("fc.", "fc_cls.", "cls_head."))]
        return "backbone weights", {name: f"backbone.{name}" for name in names if name not in head}, head
    what = f"{len(names)} tensors, {abbreviated(names)}" if names else "no tensors"
    raise UserError(
        f"{path} is of no known kind: {what}. Known are OpenMMLab's and this zoo's checkpoints, backbones of "
        "OpenMMLab's, and VMZ's"
    )


# VMZ builds on torchvision's VideoResNet, whose parts are numbered.
_VMZ_RULES = (
    (r"stem\.0\.", "conv1.conv."),
    (r"stem\.1\.", "conv1.bn."),
    (r"(layer\d+\.\d+\.conv[13]|layer\d+\.\d+\.downsample)\.0\.", r"\1.conv."),
    (r"(layer\d+\.\d+\.conv[13]|layer\d+\.\d+\.downsample)\.1\.", r"\1.bn."),
)

_VMZ_RULES_IR = (
    (r"(layer\d+\.\d+\.conv2)\.0\.", r"\1.0.conv."),
    (r"(layer\d+\.\d+\.conv2)\.1\.", r"\1.0.bn."),
)

_VMZ_RULES_IP = (
    (r"(layer\d+\.\d+\.conv2)\.0\.0\.", r"\1.0.conv."),
    (r"(layer\d+\.\d+\.conv2)\.0\.1\.", r"\1.0.bn."),
    (r"(layer\d+\.\d+\.conv2)\.0\.2\.", r"\1.1.conv."),
    (r"(layer\d+\.\d+\.conv2)\.1\.", r"\1.1.bn."),
)


def _from_vmz(name: str, is_ip: bool) -> str:
    if name.startswith("fc."):
        return f"cls_head.fc_cls.{name.removeprefix('fc.')}"
    for pattern, ours in _VMZ_RULES + (_VMZ_RULES_IP if is_ip else _VMZ_RULES_IR):
        renamed, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return f"backbone.{renamed}"
    return f"backbone.{name}"


_OTHERS = "Take the model's published checkpoint (`actionzoo weights <model>`), or train the model"


def _refuse_pyslowfast(path: Path, names: Iterable[str]) -> None:
    norms = [name for name in names if "_fuse.bn." in name]
    raise UserError(
        f"{path} is a PySlowFast checkpoint and was not loaded: its lateral connections are convolution, batch norm "
        f"and ReLU ({abbreviated(norms)}), those of this zoo a convolution alone, so its weights would give other "
        f"numbers here. {_OTHERS}"
    )


def _refuse_pytorchvideo(path: Path, names: Iterable[str]) -> None:
    norms = [name for name in names if "multipathway_fusion.norm" in name]
    why = (
        f"its lateral connections are convolution, batch norm and ReLU ({abbreviated(norms)}), those of this zoo a "
        "convolution alone, so its weights would give other numbers here"
        if norms
        else f"its layers differ from this zoo's ({abbreviated(names)})"
    )
    raise UserError(f"{path} is a PyTorchVideo checkpoint and was not loaded: {why}. {_OTHERS}")


def _refuse_caffe2(path: Path) -> None:
    raise UserError(
        f"{path} is a Caffe2 checkpoint ({{'blobs': …}}), as PySlowFast's model zoo offers them, and was not loaded: "
        f"it holds numpy arrays of networks whose lateral connections differ from this zoo's. {_OTHERS}"
    )


def abbreviated(names: Iterable[str]) -> str:
    """Their number and the first three: `5: a, b, c, …`."""
    names = list(names)
    if not names:
        return "none"
    return f"{len(names)}: {', '.join(names[:3])}" + (", …" if len(names) > 3 else "")
