"""Checkpoints by whatever name a user gives, opened as networks with everything that their use needs.

    slowfast_r50_…                          a model: runs/<dataset>/<model>/best.pth, else weights/<model>.pth
    runs/demo/slowfast_r50_…                a run's folder, or a checkpoint in it; recipe.json there says the rest
    slowfast_r50_…-1a2b3c4d.safetensors     written by `actionzoo publish`, as .pth too; its metadata say the rest
    slowfast_r50_…_20200618-….pth           published by others: its name says the model, or the caller does
    models:/NAME/1, models:/NAME@champion   in MLflow's registry

Frames, sizes and colours that a network was trained for are read from the file or its recipe, never guessed.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files.text import read_text
from ..kinetics.labels import kinetics400
from ..names import did_you_mean
from ..params import Params, workspace_of
from ..process.progress import Progress
from ..recipe import TestSpec
from ..run_files import RunFiles
from ..tracking.registry import fetch_registered
from .download import CACHE, fetch_weights
from .identity import Identity, identify, record_beside
from .published import base_name, fetch_published, published_as

if TYPE_CHECKING:
    from torch import nn

    from .load import LoadReport


@dataclass(frozen=True)
class TrainedModel:
    """A network ready for use, and how to use it."""

    network: "nn.Module"
    """In eval mode, on the CPU: (N, 3, T, H, W) -> (N, len(classes)) logits."""
    classes: list[str]
    """By output."""
    model_name: str
    test_spec: TestSpec
    file: Path
    sha256: str
    """Of the file, as 64 hex digits."""

    def text(self) -> str:
        """A line for people."""
        spec = self.test_spec
        return (
            f"{self.model_name}: {len(self.classes)} classes; {spec.num_clips} clips of {spec.clip_len} frames, one of "
            f"every {spec.frame_interval}, {spec.num_crops} crops of {spec.crop_size} pixels; {self.file}"
        )


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint's network, before its classes have names."""

    network: "nn.Module"
    """In eval mode, on the CPU; every weight is from the file and finite."""
    identity: Identity
    """Its `classes` have one name for each output, or are empty."""
    report: "LoadReport"
    """What became of the file's tensors."""

    @property
    def num_classes(self) -> int:
        from .load import num_classes_of

        return num_classes_of(self.network)


def open_checkpoint(
    source: str | Path,
    *,
    params: Params,
    model: str | None = None,
    root: Path | None = None,
    on_progress: Progress | None = None,
) -> OpenedCheckpoint:
    """Open the checkpoint that `source` names; `model` is the name of the model that it must be of, if given.

    Raises UserError for a file of another model, a damaged one, one without a trained classifier.
    """
    path = find_checkpoint(str(source), params, root, on_progress)

    from .formats import read_weights
    from .load import open_network

    record = record_beside(path)  # first: its remedy is the better one for a damaged file
    weights = read_weights(path)
    identity = identify(path, weights.meta, weights.shapes, params=params, model=model, record=record)
    identity.require_trained_head()
    network, report = open_network(identity.model, weights)
    opened = OpenedCheckpoint(network.eval(), identity, report)
    if not identity.classes and opened.num_classes == len(known := kinetics400()):
        return replace(opened, identity=replace(identity, classes=known))
    if identity.classes and len(identity.classes) != opened.num_classes:
        raise UserError(
            f"{weights.path} names {len(identity.classes)} classes, the network has {opened.num_classes}; the file is "
            "damaged or was put together by hand"
        )
    return opened


def open_trained(
    source: str | Path,
    *,
    params: Params,
    model: str | None = None,
    classes: Path | None = None,
    root: Path | None = None,
) -> TrainedModel:
    """Open the checkpoint that `source` names, for predictions.

    Where the file does not say them itself: `model` is the name of its model, and `classes` a file with a class name
    per line, in the order of the network's outputs. Raises UserError.
    """
    own_names = read_classes(classes) if classes else []
    opened = open_checkpoint(source, params=params, model=model, root=root)
    path, num_classes = opened.identity.file, opened.num_classes
    names = own_names if classes else opened.identity.classes
    if not names and not classes:
        raise UserError(
            f"{path} does not name its {num_classes} classes; give a file with a name in each line: --classes FILE"
        )
    if len(names) != num_classes:
        raise UserError(f"{classes or path} names {len(names)} classes, the network has {num_classes}; give its own")
    identity = opened.identity
    return TrainedModel(opened.network, names, identity.model_name, identity.test_spec, path, opened.report.sha256)


def find_checkpoint(source: str, params: Params, root: Path | None = None, on_progress: Progress | None = None) -> Path:
    """The checkpoint's path on this machine, fetched if need be; its bytes match the hash in its name.

    `root` has the runs and the downloaded weights: the project's folder if None. Raises UserError.
    """
    root = root or params.root
    if source.startswith("models:/"):
        path = fetch_registered(source, workspace_of(root) / CACHE, root)
    elif source.startswith(("http://", "https://", "file://")):
        return _fetch(source, params, root, on_progress)
    else:
        path = _local(source, params, root)
    return fetch_weights(path)


def _local(source: str, params: Params, root: Path) -> Path:
    """The file that a model's name, a path or a run's folder means. Raises UserError."""
    if source in params.recipes:
        best, imported = RunFiles(root, params.name, source).best, workspace_of(root) / CACHE / f"{source}.pth"
        for path in (best, imported):
            if path.is_file():
                return path
        raise UserError(
            f"neither {best} nor {imported} is there; `dvc repro train@{source}` trains the model, "
            f"`actionzoo weights {source}` fetches its published weights"
        )
    path = Path(source).expanduser()
    is_folder = os.path.isdir(path)  # unlike Path.is_dir, it answers for names that no file can have
    if is_folder:
        path = path / "best.pth"
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise UserError(f"{path} is no regular file; give a checkpoint")
        if not is_folder and "/" not in source and "." not in source:
            params.check_model(source)
        near = did_you_mean(source, params.recipes) if "/" not in source else ""
        raise UserError(
            f"{path} is not there{near}{'' if near else ';'} give a model, a checkpoint, a run's folder, or "
            "models:/NAME/VERSION"
        )
    return path


def _fetch(address: str, params: Params, root: Path, on_progress: Progress | None) -> Path:
    """The file behind an address; a published one also from its mirrors."""
    published = published_as(params, base_name(address))
    if published and published.address == address:
        return fetch_published(published, workspace_of(root) / CACHE, on_progress=on_progress)
    return fetch_weights(address, workspace_of(root) / CACHE, on_progress=on_progress)


def read_classes(path: Path) -> list[str]:
    """A class name from each line that is not blank. Raises UserError."""
    text = read_text(path, "it should have a class name in each line")
    return [line.strip() for line in text.split("\n") if line.strip()]
