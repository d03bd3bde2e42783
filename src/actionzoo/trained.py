"""A trained network with all that its use needs, by whatever name one has for it:

    slowfast_r50_…                          a row: runs/<dataset>/<row>/best.pth, else weights/<row>.pth
    runs/demo/slowfast_r50_…                a run's folder, or a checkpoint in it: recipe.json there says the rest
    slowfast_r50_…-1a2b3c4d.safetensors     what `actionzoo publish` writes, .pth too: says itself what it is
    slowfast_r50_…_20200618-….pth           what others published: its name says the row, or somebody has to
    models:/NAME/1, models:/NAME@champion   in MLflow's registry

Which frames, sizes and colours a network was trained for is read, never guessed.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tracking
from .errors import UserError
from .files.hashes import md5_of
from .files.json_files import read_json
from .params import CSNModel, Params, SlowFastModel, Viewing, as_dict, network_of
from .run_files import RowFiles

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Trained:
    network: "nn.Module"
    """In eval mode, on the CPU: (N, 3, T, H, W) -> (N, len(classes)) logits."""
    classes: list[str]
    row: str
    viewing: Viewing
    file: Path
    sha256: str

    def text(self) -> str:
        """A line for people."""
        viewing = self.viewing
        return (
            f"{self.row}: {len(self.classes)} classes; {viewing.num_clips} clips of {viewing.clip_len} frames, one of "
            f"every {viewing.frame_interval}, {viewing.num_crops} crops of {viewing.crop_size} pixels; {self.file}"
        )


def open_trained(
    model: str | Path, *, params: Params, row: str | None = None, classes: Path | None = None, root: Path = Path()
) -> Trained:
    """What `model` names. `row` says whose network it is, and `classes`, a file with a name in each line, what its
    outputs mean, where the file does not. Raises UserError."""
    from .weights import CACHE, open_model

    path = _find(str(model), params, root)
    known = _known(path, row, params)
    network, report, standard = open_model(known.model, path, cache=root / CACHE)
    num_classes = network.state_dict()["cls_head.fc_cls.bias"].shape[0]
    names = _read_classes(classes) if classes else known.classes or standard
    if not names:
        raise UserError(
            f"{path} does not name its {num_classes} classes; give a file with a name in each line: --classes FILE"
        )
    if len(names) != num_classes:
        raise UserError(f"{classes or path} names {len(names)} classes, the network has {num_classes}; give its own")
    return Trained(network.eval(), names, known.row, known.viewing, path, report.sha256)


@dataclass(frozen=True)
class _Known:
    """What is known of a checkpoint beside its tensors."""

    row: str
    model: SlowFastModel | CSNModel
    viewing: Viewing
    classes: list[str]


def _find(model: str, params: Params, root: Path) -> Path:
    """The file on this machine."""
    from .weights import CACHE, fetch_weights

    if model.startswith("models:/"):
        return fetch_weights(tracking.fetch_registered(model, root / CACHE, root))
    if model.startswith(("http://", "https://")):
        return fetch_weights(model, root / CACHE)
    if model in params.recipes:
        best, imported = RowFiles(root, params.name, model).best, root / CACHE / f"{model}.pth"
        for path in (best, imported):
            if path.is_file():
                return path
        raise UserError(
            f"neither {best} nor {imported} is there; `dvc repro train@{model}` trains the row, "
            f"`actionzoo weights {model}` fetches its published weights"
        )
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / "best.pth"
    if not path.is_file():
        if "/" not in model and "." not in model:
            params.check_row(model)
        raise UserError(f"{path} is not there; give a row, a checkpoint, a run's folder, or models:/NAME/VERSION")
    return path


def _known(path: Path, row: str | None, params: Params) -> _Known:
    from .weights import look_at

    contents = look_at(path)
    meta = contents.meta
    says_all = isinstance(meta.get("recipe"), dict) and isinstance(meta.get("row"), str)
    if made := _recipe_beside(path) or (meta if says_all else {}):
        if row not in (None, made["row"]):
            raise UserError(f"{path} is of {made['row']}, not of {row}; leave --row out")
        model, viewing = network_of(made["recipe"], path)
        classes = made.get("classes", [])
        return _Known(made["row"], model, viewing, classes if _are_names(classes) else [])
    if str(meta.get("head", "")).startswith("fresh"):
        raise UserError(
            f"{path} has a classifier that was drawn at random ({meta['head']}); it is for training, not for use"
        )
    said = next((name for name in params.recipes if name == meta.get("row")), None) or _row_by_name(path.name, params)
    if row is None and said is None:
        raise UserError(
            f"neither {path}, nor a recipe.json beside it, says of which row it is; say so with --row. "
            f"{_candidates(contents.shapes, params)}"
        )
    params.check_row(row := row or said)
    recipe = params.recipes[row]
    changed = recipe.published.ckpt_model if path.name == (recipe.published.ckpt or "").rsplit("/")[-1] else {}
    _, viewing = network_of(as_dict(recipe), params.path)
    return _Known(row, dataclasses.replace(recipe.model, **changed), viewing, [])


def _recipe_beside(path: Path) -> dict[str, Any]:
    """The run's recipe.json, if the file is one of the run's checkpoints. Raises UserError if it was another's."""
    beside = path.with_name("recipe.json")
    made = read_json(beside)
    if path.name not in made.get("files", {}):
        return {}
    if md5_of(path) != made["files"][path.name]["md5"]:
        raise UserError(f"{path} is not the file that {beside} is of; train the row again, or restore both")
    return made


def _row_by_name(name: str, params: Params) -> str | None:
    """The row that a published file's name tells of."""
    for row, recipe in params.recipes.items():
        if name in [address.rsplit("/")[-1] for address, _, _ in recipe.published.released.values()]:
            return row
    rows = [row for row in params.recipes if name.startswith((f"{row}-", f"{row}_", f"{row}."))]
    return max(rows, key=len, default=None)


def _candidates(shapes: dict[str, tuple[int, ...]], params: Params) -> str:
    """Which rows' networks have tensors like these."""
    import torch

    from .zoo import build_model

    def backbone(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if name.startswith("backbone.") and shape}

    theirs, found = backbone(shapes), []
    for row, recipe in params.recipes.items():
        with torch.device("meta"):
            state = build_model(recipe.model, 400).state_dict()
        if backbone({name: tuple(tensor.shape) for name, tensor in state.items()}) == theirs:
            found.append(row)
    return f"Its tensors fit {', '.join(found)}" if found else "Its tensors fit no row's network"


def _read_classes(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is not there; it should have a class name in each line") from None
    except ValueError:
        raise UserError(f"{path} is no text in UTF-8; it should have a class name in each line") from None


def _are_names(classes: Any) -> bool:
    return isinstance(classes, list) and all(isinstance(name, str) for name in classes)
