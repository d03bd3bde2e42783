"""The files that were published for a model: addresses, accuracies, and the network that each was trained as.

Used by `actionzoo weights`, predict, evaluate, init.weights, and the graph in reproduction/.
"""

import dataclasses
from pathlib import Path

from ..params import Params
from ..process.progress import Progress
from ..recipe import CSNModel, Kind, Percentage, SlowFastModel, as_dict
from .download import fetch_weights


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file that published.yaml names."""

    model_name: str
    kind: Kind
    address: str
    """URL or path, as the published table has it."""
    mirrors: tuple[str, ...]
    """Other addresses of the same bytes, in the order in which they are tried."""
    top1: Percentage
    """Per cent, as published for this very file; its text is as printed."""
    top5: Percentage
    model: SlowFastModel | CSNModel
    """The network that the file was trained as. One published file differs from its recipe here."""

    @property
    def name(self) -> str:
        """Base name of the address."""
        return base_name(self.address)


def base_name(address: str) -> str:
    """https://host/a/b.pth?key -> b.pth"""
    return address.split("?")[0].split("#")[0].rsplit("/", 1)[-1]


def published_files(params: Params, model: str) -> dict[Kind, PublishedFile]:
    """Kind -> the file; empty for a model for which nothing was published. Raises UserError for an unknown model."""
    files: dict[Kind, PublishedFile] = {}
    if (published := params.published_of(model)) is None:
        return files
    for kind, (address, top1, top5) in published.released.items():
        changes = published.ckpt_model if kind == "ckpt" else {}
        files[kind] = PublishedFile(
            model_name=model,
            kind=kind,
            address=address,
            mirrors=params.mirrors.get(base_name(address), ()),
            top1=top1,
            top5=top5,
            model=dataclasses.replace(params.recipes[model].model, **changes),
        )
    return files


def published_file(params: Params, model: str) -> PublishedFile | None:
    """The file that the model's name stands for: its ckpt, else its infer_ckpt, else None.

    Raises UserError for an unknown model.
    """
    files = published_files(params, model)
    return files.get("ckpt") or files.get("infer_ckpt")


def published_as(params: Params, name: str, model: str | None = None) -> PublishedFile | None:
    """The published file with the base name `name`; that of `model` if several models share it."""
    found = [file for known in params.recipes for file in published_files(params, known).values() if file.name == name]
    return next((file for file in found if file.model_name == model), found[0] if found else None)


def fetch_published(file: PublishedFile, cache: Path, *, on_progress: Progress | None = None) -> Path:
    """The file on this machine, from the first address that has it. Raises UserError."""
    return fetch_weights(file.address, cache, mirrors=file.mirrors, on_progress=on_progress)


def other_network(file: PublishedFile, model: SlowFastModel | CSNModel) -> dict[str, object]:
    """The keys of `model`, with the file's values, that must change for the file's tensors to fit; empty if they fit.

    Keys that only change how batch norm and dropout behave in training do not count.
    """
    theirs, ours = as_dict(file.model), as_dict(model)
    training_only = ("norm_eval", "bn_frozen", "dropout")
    return {key: value for key, value in theirs.items() if key not in training_only and ours.get(key) != value}
