"""What others published for a model: which files, with which numbers, and which network each of them needs.

Used by `actionzoo weights`, predict, test, init.weights, and the reproduction graph.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..params import Params, as_dict
from ..recipe import CSNModel, SlowFastModel

CACHE = Path("weights")
"""Where downloaded and imported weights lie, below the project."""

Kind = Literal["ckpt", "infer_ckpt"]


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """One file of params.yaml's `recipes.<model>.published`."""

    row: str
    kind: Kind
    """ckpt: trained by the recipe; infer_ckpt: imported from VMZ."""
    address: str
    """URL or path, as the published table has it."""
    mirrors: tuple[str, ...]
    """Other addresses of the same bytes, in the order in which they are tried."""
    top1: float
    """Per cent, the accuracy published for this very file."""
    top5: float
    model: SlowFastModel | CSNModel
    """The network that the file was trained as; not always the recipe's."""

    @property
    def name(self) -> str:
        """Base name of the address."""
        return base_name(self.address)


def base_name(address: str) -> str:
    """https://host/a/b.pth?key -> b.pth"""
    return address.split("?")[0].split("#")[0].rsplit("/", 1)[-1]


def published_files(params: Params, row: str) -> dict[str, PublishedFile]:
    """Every file published for `row`, by kind. Raises UserError for an unknown row."""
    params.check_model(row)
    recipe = params.recipes[row]
    files: dict[str, PublishedFile] = {}
    for kind, (address, top1, top5) in recipe.published.released.items():
        changes = recipe.published.ckpt_model if kind == "ckpt" else {}
        files[kind] = PublishedFile(
            row=row,
            kind=kind,
            address=address,
            mirrors=params.mirrors.get(base_name(address), ()),
            top1=top1,
            top5=top5,
            model=dataclasses.replace(recipe.model, **changes),
        )
    return files


def published_file(params: Params, row: str) -> PublishedFile | None:
    """The file that stands for `row` by name: its ckpt, else its infer_ckpt, else None. Raises UserError."""
    files = published_files(params, row)
    return files.get("ckpt") or files.get("infer_ckpt")


def published_as(params: Params, name: str, row: str | None = None) -> PublishedFile | None:
    """The published file that is called `name` (a base name), of `row` if several models share it."""
    found = [file for known in params.recipes for file in published_files(params, known).values() if file.name == name]
    return next((file for file in found if file.row == row), found[0] if found else None)


def fetch_published(file: PublishedFile, cache: Path, *, tell: Callable[[str, int, int], None] | None = None) -> Path:
    """The file on this machine, from the first address that has it. Raises UserError."""
    from .download import fetch_weights

    return fetch_weights(file.address, cache, mirrors=file.mirrors, tell=tell)


def other_network(file: PublishedFile, model: SlowFastModel | CSNModel) -> dict[str, object]:
    """What of `model` has to be otherwise for the file's tensors to fit; empty if they do.

    How batch norm and dropout behave in training is no matter of tensors.
    """
    theirs, ours = as_dict(file.model), as_dict(model)
    training_only = ("norm_eval", "bn_frozen", "dropout")
    return {key: value for key, value in theirs.items() if key not in training_only and ours.get(key) != value}
