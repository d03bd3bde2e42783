"""A trained network with all that its use needs, by whatever name one has for it:

    slowfast_r50_…                          a row: runs/<dataset>/<row>/best.pth, else weights/<row>.pth
    runs/demo/slowfast_r50_…                a run's folder, or a checkpoint in it: recipe.json there says the rest
    slowfast_r50_…-1a2b3c4d.safetensors     what `actionzoo publish` writes, .pth too: says itself what it is
    slowfast_r50_…_20200618-….pth           what others published: its name says the row, or somebody has to
    models:/NAME/1, models:/NAME@champion   in MLflow's registry

Which frames, sizes and colours a network was trained for is read, never guessed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files.text import read_text
from ..job import RunFiles
from ..kinetics.labels import kinetics400
from ..names import did_you_mean
from ..params import Params
from ..recipe import TestSpec
from ..tracking.registry import fetch_registered
from .identity import Identity, identify, record_beside
from .published import CACHE, base_name, fetch_published, published_as

if TYPE_CHECKING:
    from torch import nn

    from .load import LoadReport


@dataclass(frozen=True)
class Trained:
    network: "nn.Module"
    """In eval mode, on the CPU: (N, 3, T, H, W) -> (N, len(classes)) logits."""
    classes: list[str]
    row: str
    viewing: TestSpec
    file: Path
    sha256: str

    def text(self) -> str:
        """A line for people."""
        viewing = self.viewing
        return (
            f"{self.row}: {len(self.classes)} classes; {viewing.num_clips} clips of {viewing.clip_len} frames, one of "
            f"every {viewing.frame_interval}, {viewing.num_crops} crops of {viewing.crop_size} pixels; {self.file}"
        )


@dataclass(frozen=True)
class Opened:
    """A checkpoint's network, before its classes have names."""

    network: "nn.Module"
    """In eval mode, on the CPU, every weight from the file and finite."""
    identity: Identity
    """Of which model it is, with which settings and classes; `classes` have one name for each output, or are empty."""
    report: "LoadReport"
    """What became of the file's tensors."""

    @property
    def num_classes(self) -> int:
        return self.network.state_dict()["cls_head.fc_cls.bias"].shape[0]


def open_checkpoint(
    model: str | Path,
    *,
    params: Params,
    row: str | None = None,
    root: Path = Path(),
    tell: Callable[[str, int, int], None] | None = None,
) -> Opened:
    """The network that `model` names, for every command that uses one; `row` is the model that it has to be of.

    Raises UserError for a file of another model, a damaged one, one without a trained classifier.
    """
    path = find_checkpoint(str(model), params, root, tell)

    from .formats import read_weights
    from .load import open_network

    record = record_beside(path)  # first: its remedy is the better one for a damaged file
    weights = read_weights(path)
    identity = identify(path, weights.meta, weights.shapes, params=params, row=row, record=record)
    identity.require_trained_head()
    network, report = open_network(identity.model, weights)
    opened = Opened(network.eval(), identity, report)
    if not identity.classes and opened.num_classes == len(known := kinetics400()):
        return replace(opened, identity=replace(identity, classes=known))
    if identity.classes and len(identity.classes) != opened.num_classes:
        raise UserError(
            f"{weights.path} names {len(identity.classes)} classes, the network has {opened.num_classes}; the file is "
            "damaged or was put together by hand"
        )
    return opened


def open_trained(
    model: str | Path, *, params: Params, row: str | None = None, classes: Path | None = None, root: Path = Path()
) -> Trained:
    """What `model` names. `row` says whose network it is, and `classes`, a file with a name in each line, what its
    outputs mean, where the file does not. Raises UserError."""
    own_names = read_classes(classes) if classes else []
    opened = open_checkpoint(model, params=params, row=row, root=root)
    path, num_classes = opened.identity.file, opened.num_classes
    names = own_names if classes else opened.identity.classes
    if not names and not classes:
        raise UserError(
            f"{path} does not name its {num_classes} classes; give a file with a name in each line: --classes FILE"
        )
    if len(names) != num_classes:
        raise UserError(f"{classes or path} names {len(names)} classes, the network has {num_classes}; give its own")
    identity = opened.identity
    return Trained(opened.network, names, identity.row, identity.viewing, path, opened.report.sha256)


def find_checkpoint(
    model: str, params: Params, root: Path = Path(), tell: Callable[[str, int, int], None] | None = None
) -> Path:
    """The file on this machine, its bytes what its name promises. Raises UserError."""
    if model.startswith("models:/"):
        path = fetch_registered(model, root / CACHE, root)
    elif model.startswith(("http://", "https://", "file://")):
        return _fetch(model, params, root, tell)
    else:
        path = _local(model, params, root)

    from .download import fetch_weights  # torch takes seconds to import, a name that leads nowhere does not need it

    return fetch_weights(path)


def _local(model: str, params: Params, root: Path) -> Path:
    """The file that a row, a path or a run's folder means. Raises UserError."""
    if model in params.recipes:
        best, imported = RunFiles(root, params.name, model).best, root / CACHE / f"{model}.pth"
        for path in (best, imported):
            if path.is_file():
                return path
        raise UserError(
            f"neither {best} nor {imported} is there; `dvc repro train@{model}` trains the row, "
            f"`actionzoo weights {model}` fetches its published weights"
        )
    path = Path(model).expanduser()
    is_folder = os.path.isdir(path)  # which answers for names, too, that no file can have
    if is_folder:
        path = path / "best.pth"
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise UserError(f"{path} is no regular file; give a checkpoint")
        if not is_folder and "/" not in model and "." not in model:
            params.check_model(model)
        near = did_you_mean(model, params.recipes) if "/" not in model else ""
        raise UserError(
            f"{path} is not there{near}{'' if near else ';'} give a row, a checkpoint, a run's folder, or "
            "models:/NAME/VERSION"
        )
    return path


def _fetch(address: str, params: Params, root: Path, tell: Callable[[str, int, int], None] | None) -> Path:
    """A published file also from its other addresses."""
    from .download import fetch_weights

    published = published_as(params, base_name(address))
    if published and published.address == address:
        return fetch_published(published, root / CACHE, tell=tell)
    return fetch_weights(address, root / CACHE, tell=tell)


def read_classes(path: Path) -> list[str]:
    """A class name from each line that is not blank. Raises UserError."""
    text = read_text(path, "it should have a class name in each line")
    return [line.strip() for line in text.split("\n") if line.strip()]
