"""Which network a weights file is of: its model, its settings, its classes. The one answer, for every command.

What a file says about itself comes first, and in this order:

    recipe.json beside it, if it vouches for these very bytes    a run's best.pth and latest.pth
    a recipe in its metadata                                     `actionzoo publish`, saved states
    a model's name in its metadata                               `actionzoo weights`
    its own name, if it is a published file's or begins with a model's
    a config name in its metadata, as OpenMMLab writes it

Where it contradicts the model that was asked for, it is refused; where it says nothing, the one asked for is taken.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import require_json
from ..names import did_you_mean
from ..params import Params, as_dict, network_of
from ..recipe import CSNModel, SlowFastModel, TestSpec
from .published import PublishedFile, published_as

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Identity:
    """What a weights file is, beside its tensors."""

    file: Path
    row: str
    model: SlowFastModel | CSNModel
    """The network that the tensors are of; not always the one that params.yaml has today."""
    viewing: TestSpec
    """How it looks at videos: the file's own recipe, else the one of params.yaml without a data set's overrides."""
    classes: list[str]
    """By output; empty if the file names none."""
    has_own_recipe: bool
    published: PublishedFile | None
    fresh_head: str
    """Why its classifier was drawn at random; '' if it was trained."""

    def require_trained_head(self) -> None:
        """Raises UserError for a classifier that was drawn at random: it gives numbers that mean nothing."""
        if self.fresh_head:
            raise UserError(
                f"{self.file} has a classifier that was drawn at random ({self.fresh_head}); it is for training, "
                "not for use"
            )


@dataclass(frozen=True)
class _Claim:
    """That a file is of a model, and who says so."""

    row: str
    source: str
    remedy: str = "name that model, or leave --row out"


def identify(
    file: Path,
    meta: Mapping[str, Any],
    shapes: Shapes,
    *,
    params: Params,
    row: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> Identity:
    """What `file` is, whose metadata and shapes of tensors (by their names in the network) are given.

    `row` is the model that it is asked for; `record` is what record_beside gives, if the caller has it. Raises
    UserError if the file is of another one, does not say of which, or is not the one that its recipe.json is of.
    """
    record = record_beside(file) if record is None else record
    has_own_recipe = "recipe" in record or isinstance(meta.get("recipe"), dict)
    claim = _claim(file, meta, record, params, row)
    if row is not None and claim is not None and claim.row != row:
        raise UserError(f"{file} is of {claim.row}, not of {row}: {claim.source}; {claim.remedy}")
    if row is None and claim is None:
        raise UserError(
            f"neither {file}, nor a recipe.json beside it, says of which row it is; say so with --row. "
            f"{_candidates(shapes, params)}"
        )
    row = claim.row if row is None else row
    head = str(meta.get("head", ""))
    fresh_head = head if head.startswith("fresh") else ""
    classes = record.get("classes", meta.get("classes"))
    classes = classes if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else []
    if has_own_recipe:
        model, viewing = network_of(record["recipe"] if "recipe" in record else meta["recipe"], file)
        _check_viewing(file, viewing)
        return Identity(file, row, model, viewing, classes, True, None, fresh_head)
    params.check_model(row)
    published = _published(file, meta, row, params)
    recipe = as_dict(params.recipes[row])
    if isinstance(meta.get("model"), dict):  # written by `actionzoo weights`
        recipe["model"] = meta["model"]
    elif published:
        recipe["model"] = as_dict(published.model)
    model, viewing = network_of(recipe, file)
    return Identity(file, row, model, viewing, classes, False, published, fresh_head)


def record_beside(file: Path) -> dict[str, Any]:
    """recipe.json of the run whose checkpoint `file` is; empty if it is none of a run's.

    Raises UserError if recipe.json is damaged, or vouches for other bytes than the file has now.
    """
    beside = file.with_name("recipe.json")
    if not beside.is_file():
        return {}
    remedy = f"restore it (`dvc checkout {beside}`), or move {file.name} into a folder of its own"
    record = require_json(beside, remedy)
    files = record.get("files")
    if files is None:  # no run of this program: what its classes are called may still be known
        return {"classes": record["classes"]} if "classes" in record else {}
    known = files.get(file.name) if isinstance(files, dict) else None
    if known is None:
        return {}
    if not isinstance(known, dict) or not all(
        isinstance(record.get(key), kind) for key, kind in (("row", str), ("recipe", dict))
    ):
        raise UserError(f"{beside} is no record of a training: it lacks row, recipe or md5; {remedy}")
    if md5_of(file) != known.get("md5"):
        raise UserError(
            f"{file} is not the file that {beside} is of: it was damaged or replaced. Restore both "
            f"(`dvc checkout {file} {beside}`), or train the row again"
        )
    return record


def _claim(
    file: Path, meta: Mapping[str, Any], record: Mapping[str, Any], params: Params, row: str | None
) -> _Claim | None:
    """The strongest of what the file says it is; `row` decides between models that share a published file."""
    rename = "if its name is wrong, give the file another one"
    if isinstance(record.get("row"), str):
        return _Claim(record["row"], f"{file.with_name('recipe.json')} says so")
    if isinstance(meta.get("row"), str):
        claim = _Claim(meta["row"], "its metadata say so")
        if not isinstance(meta.get("recipe"), dict) and claim.row not in params.recipes:
            raise UserError(
                f"{file} says that it is of {claim.row}, which {params.path} does not have"
                f"{did_you_mean(claim.row, params.recipes)}; `actionzoo weights <model> SOURCE` makes it anew"
            )
        return claim
    if published := published_as(params, file.name, row):
        return _Claim(published.row, f"{published.name} is what was published for it", rename)
    rows = [row for row in params.recipes if file.name.startswith((f"{row}-", f"{row}_", f"{row}."))]
    if rows:
        return _Claim(max(rows, key=len), "its name says so", rename)
    if isinstance(meta.get("config_name"), str):
        config = Path(meta["config_name"]).stem
        rows = [row for row, recipe in params.recipes.items() if config in (row, recipe.published.config)]
        if len(rows) == 1 or (row is not None and rows):
            return _Claim(row if row in rows else rows[0], f"its metadata name the config {config}")
    return None


def _published(file: Path, meta: Mapping[str, Any], row: str, params: Params) -> PublishedFile | None:
    """The published file that it is, or was imported from."""
    for name in (file.name, meta.get("source")):
        if isinstance(name, str) and (found := published_as(params, name, row)) and found.row == row:
            return found
    return None


def _check_viewing(file: Path, viewing: TestSpec) -> None:
    if not all(math.isfinite(value) for value in (*viewing.mean, *viewing.std)) or min(viewing.std) <= 0:
        raise UserError(
            f"{file}: its recipe normalises with mean {viewing.mean} and std {viewing.std}, which are no pixel levels; "
            "the file is damaged, fetch it again or train the model again"
        )
    if viewing.crop_size > viewing.resize:
        raise UserError(
            f"{file}: its recipe crops {viewing.crop_size} pixels out of a short side of {viewing.resize}; the file is "
            "damaged, fetch it again or train the model again"
        )


def _candidates(shapes: Shapes, params: Params) -> str:
    """Which models' networks have tensors like these."""
    import torch

    from ..zoo import build_model

    def backbone(shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if name.startswith("backbone.") and shape}

    theirs, found = backbone(shapes), []
    for row, recipe in params.recipes.items():
        with torch.device("meta"):
            state = build_model(recipe.model, 400).state_dict()
        if backbone({name: tuple(tensor.shape) for name, tensor in state.items()}) == theirs:
            found.append(row)
    return f"Its tensors fit {', '.join(found)}" if found else "Its tensors fit no row's network"
