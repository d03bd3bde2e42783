"""Which network a weights file is of: its model, its settings, its classes. The one answer, for every command.

Sources, the strongest first:

    recipe.json beside the file, if it vouches for these bytes   a run's best.pth and latest.pth
    a recipe in its metadata                                     `actionzoo publish`, saved states
    a model's name in its metadata                               `actionzoo weights`
    its own name, if it is a published file's or begins with a model's
    a config name in its metadata, as OpenMMLab writes it

A file that contradicts the model asked for is refused; one that says nothing is taken for it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import require_json
from ..names import did_you_mean
from ..params import Params, network_of
from ..recipe import CSNModel, SlowFastModel, TestSpec, as_dict
from ..records import RunRecord
from .provenance import Provenance
from .published import PublishedFile, published_as

NAME_KEYS = ("model_name", "row")
"""Keys of a file's metadata that hold the model's name. Both are written: version 0.1 reads `row`."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor in the network -> its shape."""


@dataclass(frozen=True)
class Identity:
    """What a weights file is, beside its tensors."""

    file: Path
    model_name: str
    model: SlowFastModel | CSNModel
    """The network that the tensors are of; params.yaml may have another one by now."""
    test_spec: TestSpec
    """From the file's own recipe, else from params.yaml without a data set's overrides."""
    classes: list[str]
    """By output; empty if the file does not name them."""
    has_own_recipe: bool
    published: PublishedFile | None
    fresh_head: str
    """Why its classifier was drawn at random; '' if it was trained."""

    def require_trained_head(self) -> None:
        """Raises UserError for a classifier that was drawn at random: its numbers mean nothing."""
        if self.fresh_head:
            raise UserError(
                f"{self.file} has a classifier that was drawn at random ({self.fresh_head}); it is for training, "
                "not for use"
            )


@dataclass(frozen=True)
class RecordBeside:
    """What the recipe.json beside a checkpoint says about it."""

    model_name: str = ""
    """'' if another program wrote the file."""
    recipe: Mapping[str, object] | None = None
    """Plain values, not judged yet."""
    classes: list[str] | None = None
    """By output; None if the file does not name them."""
    provenance: Provenance = field(default_factory=Provenance)
    """What the training that made the checkpoint came from."""


@dataclass(frozen=True)
class _Claim:
    """That a file is of a model, and where it says so."""

    model_name: str
    source: str
    remedy: str = "name that model, or leave --model out"


def identify(
    file: Path,
    meta: Mapping[str, object],
    shapes: Shapes,
    *,
    params: Params,
    model: str | None = None,
    record: RecordBeside | None = None,
) -> Identity:
    """What `file` is, given its metadata and the shapes of its tensors.

    `model` is the name of the model asked for; `record` is what record_beside returns, if the caller has it. Raises
    UserError if the file is of another model, does not say of which, or has changed since its recipe.json was written.
    """
    record = record or record_beside(file) or RecordBeside()
    claim = _claim(file, meta, record, params, model)
    if model is not None and claim is not None and claim.model_name != model:
        raise UserError(f"{file} is of {claim.model_name}, not of {model}: {claim.source}; {claim.remedy}")
    name = claim.model_name if claim is not None else model
    if name is None:
        raise UserError(
            f"neither {file}, nor a recipe.json beside it, says of which model it is; say so with --model. "
            f"{_candidates(shapes, params)}"
        )
    head = str(meta.get("head", ""))
    fresh_head = head if head.startswith("fresh") else ""
    classes = _class_names(meta.get("classes")) if record.classes is None else record.classes
    own_recipe = meta.get("recipe") if record.recipe is None else record.recipe
    if isinstance(own_recipe, dict):
        network, spec = network_of(own_recipe, file)
        _check_spec(file, spec)
        return Identity(file, name, network, spec, classes, True, None, fresh_head)
    params.check_model(name)
    published = _published(file, meta, name, params)
    recipe = as_dict(params.recipes[name])
    if isinstance(meta.get("model"), dict):  # written by `actionzoo weights`
        recipe["model"] = meta["model"]
    elif published:
        recipe["model"] = as_dict(published.model)
    network, spec = network_of(recipe, file)
    return Identity(file, name, network, spec, classes, False, published, fresh_head)


def record_beside(file: Path) -> RecordBeside | None:
    """What recipe.json in the checkpoint's folder says about it; None if it says nothing.

    Raises UserError if recipe.json is damaged, or vouches for other bytes than the file has now.
    """
    path = file.with_name("recipe.json")
    if not path.is_file():
        return None
    remedy = f"restore it (`dvc checkout {path}`), or move {file.name} into a folder of its own"
    content = require_json(path, remedy)
    if content.get("files") is None:  # written by another program; it may still name the classes
        return RecordBeside(classes=_class_names(content["classes"])) if "classes" in content else None
    record = RunRecord.from_json(content, path)
    if (known := record.files.get(file.name)) is None:
        return None
    if md5_of(file) != known.md5:
        raise UserError(
            f"{file} is not the file that {path} vouches for: it was damaged or replaced. Restore both "
            f"(`dvc checkout {file} {path}`), or train the model again"
        )
    return RecordBeside(record.model, record.recipe, list(record.classes) or None, Provenance.of(record))


def is_of_this_zoo(meta: Mapping[str, object]) -> bool:
    """Whether the metadata are those of a checkpoint that this package wrote."""
    return bool(_first_text(meta, *NAME_KEYS)) or "val_top1" in meta


def _first_text(content: Mapping[str, object], *keys: str) -> str:
    """The first of the keys' values that is a text; '' if there is none."""
    return next((text for key in keys if isinstance(text := content.get(key), str)), "")


def _class_names(names: object) -> list[str]:
    """Empty for what is no list of names."""
    return list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _claim(
    file: Path, meta: Mapping[str, object], record: RecordBeside, params: Params, model: str | None
) -> _Claim | None:
    """The strongest statement about the file's model; `model` decides between models that share a published file."""
    rename = "if its name is wrong, give the file another one"
    if record.model_name:
        return _Claim(record.model_name, f"{file.with_name('recipe.json')} says so")
    if name := _first_text(meta, *NAME_KEYS):
        if not isinstance(meta.get("recipe"), dict) and name not in params.recipes:
            raise UserError(
                f"{file} says that it is of {name}, which {params.path} does not have"
                f"{did_you_mean(name, params.recipes)}; `actionzoo weights <model> SOURCE` makes it anew"
            )
        return _Claim(name, "its metadata say so")
    if published := published_as(params, file.name, model):
        return _Claim(published.model_name, f"{published.name} is what was published for it", rename)
    names = [name for name in params.recipes if file.name.startswith((f"{name}-", f"{name}_", f"{name}."))]
    if names:
        return _Claim(max(names, key=len), "its name says so", rename)
    if isinstance(config_name := meta.get("config_name"), str):
        config = Path(config_name).stem
        configs = {name: published.config for name, published in params.published.items()}
        names = [name for name in params.recipes if config in (name, configs.get(name))]
        if len(names) == 1 or (model is not None and names):
            return _Claim(
                model if model is not None and model in names else names[0], f"its metadata name the config {config}"
            )
    return None


def _published(file: Path, meta: Mapping[str, object], model: str, params: Params) -> PublishedFile | None:
    """The published file that it is, or was imported from."""
    for name in (file.name, meta.get("source")):
        if isinstance(name, str) and (found := published_as(params, name, model)) and found.model_name == model:
            return found
    return None


def _check_spec(file: Path, spec: TestSpec) -> None:
    if not all(math.isfinite(value) for value in (*spec.mean, *spec.std)) or min(spec.std) <= 0:
        raise UserError(
            f"{file}: its recipe normalises with mean {spec.mean} and std {spec.std}, which are no pixel levels; "
            "the file is damaged, fetch it again or train the model again"
        )
    if spec.crop_size > spec.resize:
        raise UserError(
            f"{file}: its recipe crops {spec.crop_size} pixels out of a short side of {spec.resize}; the file is "
            "damaged, fetch it again or train the model again"
        )


def _candidates(shapes: Shapes, params: Params) -> str:
    """A sentence on which models have tensors like these."""
    found = architecture(shapes)
    names = [
        name
        for name, recipe in params.recipes.items()
        if found and all(getattr(recipe.model, key, None) == value for key, value in found.items())
    ]
    return f"Its tensors fit {', '.join(names)}" if names else "Its tensors fit the network of no model"


def architecture(shapes: Shapes) -> dict[str, object]:
    """The settings of a recipe's model section that the shapes of tensors tell; empty for another kind of network.

    For a hint: a few tensors decide, and no network is built.
    """
    names = shapes.keys()
    lateral = shapes.get("backbone.slow_path.conv1_lateral.conv.weight", ())
    if len(lateral) == 5:
        slow, fast = (_depth(names, f"backbone.{pathway}_path.") for pathway in ("slow", "fast"))
        return {"family": "slowfast", "slow_depth": slow, "fast_depth": fast, "fusion_kernel": lateral[2]}
    if "backbone.layer1.0.conv2.0.conv.weight" in names:
        is_ip = "backbone.layer1.0.conv2.1.conv.weight" in names
        return {"family": "csn", "depth": _depth(names, "backbone."), "bottleneck": "ip" if is_ip else "ir"}
    return {}


def _depth(names: Iterable[str], prefix: str) -> int | None:
    """Layers of the ResNet whose stages have as many blocks; None for any other number of blocks."""
    from ..models.layers import BLOCKS

    blocks = [{name.split(".")[0] for name in _below(names, f"{prefix}layer{stage}.")} for stage in (1, 2, 3, 4)]
    return next((depth for depth, counts in BLOCKS.items() if counts == tuple(map(len, blocks))), None)


def _below(names: Iterable[str], prefix: str) -> Iterator[str]:
    return (name.removeprefix(prefix) for name in names if name.startswith(prefix))
