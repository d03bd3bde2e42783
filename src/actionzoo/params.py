"""params.yaml as frozen, validated types: the only place where input is judged.

Behind `load_params` nobody checks again, and functions take the values they need, never the whole of it.
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import UserError
from .files.addresses import without_secrets
from .files.yaml_files import read_yaml
from .names import NAME_RULE, did_you_mean, is_name
from .recipe import (
    STRICT,
    Augment,
    Clips,
    CosineSchedule,
    Count,
    CSNModel,
    Init,
    Model,
    Optim,
    Positive,
    PositiveFloat,
    Published,
    Recipe,
    Share,
    SlowFastModel,
    Split,
    StepSchedule,
    Test,
    TestSpec,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Synthetic:
    """Size of the made-up mirror: clips per class and split, parts per split."""

    train_clips: Positive
    val_clips: Positive
    test_clips: Positive
    parts: Positive
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PublishedLists:
    """A split as others published it: which clips their accuracies are of."""

    list: Annotated[str, Field(min_length=1)]
    """Path or URL of lines `video_id num_frames label`."""
    label_map: Annotated[str, Field(min_length=1)] | None = None
    """Path or URL of the names of its labels; null: they are the data set's own."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Dataset:
    source: str
    """URL or folder of a mirror in the public layout; `synthetic:` makes one; `folder:///a/path` or `folder:a/path` is
    a folder of one's own videos. ACTIONZOO_SOURCE overrides it."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    parts: str = "all"
    """`all`, or part numbers such as `0-9` or `0,3,5-7`."""
    max_bad_share: Share = 0.1
    """Share of the listed clips that may be missing or corrupt before a data stage fails."""
    synthetic: Synthetic | None = None
    tour: tuple[str, ...] = ()
    """Rows that `actionzoo demo` builds."""
    published_lists: dict[Split, PublishedLists] = dataclasses.field(default_factory=dict)
    """Split -> the list that published accuracies are of; tests then see exactly its clips."""
    overrides: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    """Family, or name of a row (which goes last): sections of a recipe, and the values that replace the recipe's."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Encode:
    """How short-side videos are encoded (H.264)."""

    crf: Annotated[int, Field(ge=0, le=51)]
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]
    gop: Positive
    """Frames from one keyframe to the next, at most."""
    bframes: Count
    tune: Literal["fastdecode", "film", "none"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Jpeg:
    qscale: Annotated[int, Field(ge=2, le=31)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prepare:
    encode: Encode
    jpeg: Jpeg
    min_frames: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Runtime:
    device: Literal["auto", "cpu", "cuda"]
    workers: Count | Literal["auto"]
    jobs: Positive | Literal["auto"]
    gpus: Positive
    """Of a machine, that train and evaluate take: a process each, started by torchrun. Without GPUs: processes."""
    nodes: Positive
    """Machines that share a training."""
    rendezvous: str | None
    """host:port of the first machine, where there are several."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    max_views: Positive
    """That a test puts through the network at once; half as many where memory runs out."""
    batch_norm: Literal["local", "sync", "ghost"]
    """What batch norm sees: a process' batch, all processes' batches, or videos_per_gpu of the recipe at a time."""
    save_minutes: PositiveFloat
    """From one saved state of a training to the next, at most."""
    keep_states: Positive
    deterministic: bool
    clip_timeout_seconds: PositiveFloat
    scheduler: str | None
    """Address of a Dask scheduler whose workers prepare the data, tcp://10.0.0.1:8786; null: this machine alone."""

    @property
    def scheduler_address(self) -> str | None:
        """DASK_SCHEDULER_ADDRESS where it is set, also if to nothing; else as written."""
        return os.environ.get("DASK_SCHEDULER_ADDRESS", self.scheduler) or None

    @property
    def num_jobs(self) -> int:
        return _cpu_count() if self.jobs == "auto" else self.jobs

    @property
    def num_processes(self) -> int:
        return self.gpus * self.nodes

    @property
    def num_workers(self) -> int:
        """Of each process' loader."""
        return max(1, min(_cpu_count() // self.gpus, 8)) if self.workers == "auto" else self.workers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    name: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _File:
    data: Data
    runtime: Runtime
    prepare: Prepare
    datasets: dict[str, Dataset]
    recipes: dict[str, Recipe]
    mirrors: dict[str, tuple[Annotated[str, Field(min_length=1)], ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Params:
    """What params.yaml says, judged."""

    path: Path
    name: str
    """Of the chosen data set."""
    dataset: Dataset
    datasets: dict[str, Dataset]
    runtime: Runtime
    prepare: Prepare
    recipes: dict[str, Recipe]
    """As written, before the data set's overrides."""
    mirrors: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Base name of a published file -> its other addresses, URLs or paths, tried in order where the first is gone."""

    def models(self) -> list[str]:
        """Names of all rows, in the order of the file."""
        return list(self.recipes)

    def recipe(self, row: str) -> Recipe:
        """The recipe that `row` really uses on the chosen data set, overrides applied.

        Raises UserError for an unknown row."""
        self.check_model(row)
        plain = _overridden(row, self.recipes[row], self.dataset)
        recipe = TypeAdapter(Recipe).validate_json(json.dumps(plain))
        return dataclasses.replace(recipe, published=self.recipes[row].published)  # plain values lose its texts

    def changed(self, row: str, *, seed: int | None = None, **sections: dict[str, Any]) -> "Params":
        """The same with other values in sections of the recipe that `row` uses; they count as overrides."""
        recipes = self.recipes | ({row: dataclasses.replace(self.recipes[row], seed=seed)} if seed is not None else {})
        of_row = dict(self.dataset.overrides.get(row, {}))
        for section, values in sections.items():
            of_row[section] = of_row.get(section, {}) | values
        dataset = dataclasses.replace(self.dataset, overrides=self.dataset.overrides | {row: of_row})
        return dataclasses.replace(self, recipes=recipes, dataset=dataset)

    def overrides(self, row: str) -> list[str]:
        """What the data set changes of `row`'s recipe, as `schedule.epochs: 256 -> 10`."""
        self.check_model(row)
        before, after = as_dict(self.recipes[row]), as_dict(self.recipe(row))
        return [
            f"{section}.{key}: {_plain(before[section][key])} -> {_plain(after[section][key])}"
            for section, values in before.items()
            if isinstance(values, dict)
            for key in values
            if before[section][key] != after[section][key]
        ]

    def folder(self, kind: str, root: Path = Path()) -> Path:
        """`root/kind/<data set>`, e.g. runs/demo."""
        return root / kind / self.name

    def check_model(self, row: str) -> None:
        if row not in self.recipes:
            raise UserError(
                f"{self.path}: recipes.{row} is unknown{did_you_mean(row, self.recipes)}; "
                f"`actionzoo rows` lists all {len(self.recipes)}"
            )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and judge the file; environment variable ACTIONZOO_SOURCE replaces the chosen data set's source.

    Raises UserError that lists every fault: file, key, value, and a near miss where there is one.
    """
    path = Path(path)
    raw = read_yaml(path, "run from the project's folder, where params.yaml lies")
    _check_names(path, raw)
    file = _validated(path, raw)
    name = file.data.name
    if name not in file.datasets:
        raise UserError(
            f"{path}: data.name is {name!r}, which is not under datasets{did_you_mean(name, file.datasets)}; "
            f"there are {', '.join(file.datasets)}"
        )
    dataset = file.datasets[name]
    if source := os.environ.get("ACTIONZOO_SOURCE"):
        dataset = dataclasses.replace(dataset, source=source)
        if fault := _source_fault(source):
            raise UserError(f"the environment variable ACTIONZOO_SOURCE is {fault}")
    params = Params(
        path=path,
        name=name,
        dataset=dataset,
        datasets=file.datasets,
        runtime=file.runtime,
        prepare=file.prepare,
        recipes=file.recipes,
        mirrors=file.mirrors,
    )
    _check_datasets(path, file)
    return params


def network_of(recipe: dict[str, Any], where: Path) -> tuple[SlowFastModel | CSNModel, TestSpec]:
    """The network and how it looks at videos, of a recipe as plain values, as files that `where` names keep it.

    Other keys are passed over: they may be an older version's. Raises UserError.
    """
    sections = {name: recipe.get(name) for name in ("clips", "augment", "test")}
    if not all(isinstance(section, dict) for section in sections.values()):
        raise UserError(f"{where}: its recipe has no clips, augment and test; it is of no version of actionzoo")
    # a training crops by augment.crop_size, a test by test.crop_size: the later one is meant
    viewing = {key: value for section in sections.values() for key, value in section.items()}
    model = _validated(where, recipe.get("model"), Model, "recipe.model")
    return model, _validated(where, viewing, TestSpec, "recipe")


def as_dict(section: Any) -> dict[str, Any]:
    """A section as plain dicts and lists, in the file's order."""
    return json.loads(json.dumps(dataclasses.asdict(section)))


def digest(*parts: Any) -> str:
    """sha256 over plain values and sections; equal values give equal digests on every machine."""
    plain = [as_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _validated(path: Path, raw: dict[str, Any], kind: Any = _File, where: str = "") -> Any:
    try:
        # by way of JSON: strict, and still lists may become tuples
        return TypeAdapter(kind).validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        faults = [f"{path}: {_fault(raw, where, fault)}" for fault in error.errors()]
        raise UserError("\n".join(faults)) from None


def _fault(raw: Any, where: str, fault: dict[str, Any]) -> str:
    """One sentence for one of pydantic's faults. Locations name the branch of a union too: left out here."""
    place, keys = raw, []
    for key in fault["loc"]:
        if (isinstance(place, dict) and key in place) or (isinstance(place, list) and isinstance(key, int)):
            place = place[key] if isinstance(place, dict) or key < len(place) else None
            keys.append(str(key))
        elif fault["type"] == "missing" and key == fault["loc"][-1]:
            keys.append(str(key))
    name = ".".join([*([where] if where else []), *keys])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is unknown{did_you_mean(keys[-1], _siblings(fault['loc']))}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    value = fault["input"]
    hint = "; write 1.0e-4, not 1e-4" if isinstance(value, str) and "e" in value and _is_number(value) else ""
    return f"{name} is {value!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}{hint}"


def _siblings(loc: tuple[str | int, ...]) -> list[str]:
    """Names that would be known at the place of the last key: all fields of all sections will do for a near miss."""
    sections = (
        _File,
        Data,
        Runtime,
        Prepare,
        Encode,
        Jpeg,
        Dataset,
        PublishedLists,
        Synthetic,
        Recipe,
        SlowFastModel,
        CSNModel,
        Init,
        Clips,
        Augment,
        Optim,
        CosineSchedule,
        StepSchedule,
        Test,
        Published,
    )
    return sorted({field.name for section in sections for field in dataclasses.fields(section)})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _overridden(row: str, recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    plain = as_dict(recipe)
    for key in (recipe.model.family, row):
        for section, values in dataset.overrides.get(key, {}).items():
            plain[section] |= values
    return plain


def _check_datasets(path: Path, file: _File) -> None:
    """Every row must be a sound recipe on every data set, not only on the chosen one."""
    faults: dict[str, None] = {}  # a set that keeps its order: rows of a family share most faults
    families = {recipe.model.family for recipe in file.recipes.values()}
    for name, dataset in file.datasets.items():
        if fault := _source_fault(dataset.source) or _secret_fault(dataset.source):
            faults[f"{path}: datasets.{name}.source is {fault}"] = None
        for row in dataset.tour:
            if row not in file.recipes:
                faults[
                    f"{path}: datasets.{name}.tour names {row}, which is unknown{did_you_mean(row, file.recipes)}"
                ] = None
        for key, sections in dataset.overrides.items():
            where = f"datasets.{name}.overrides.{key}"
            rows = [row for row, recipe in file.recipes.items() if key in (row, recipe.model.family)]
            if not rows:
                faults[f"{path}: {where} is unknown{did_you_mean(key, [*families, *file.recipes])}"] = None
            for row in rows:
                for fault in _unknown_overrides(sections, as_dict(file.recipes[row])):
                    faults[f"{path}: {where}.{fault}"] = None
    addresses = [
        address
        for recipe in file.recipes.values()
        for address in (recipe.published.ckpt, recipe.published.infer_ckpt, recipe.init.weights)
        if address
    ]
    names = {address.rsplit("/", 1)[-1] for address in addresses}
    for name in file.mirrors:
        if name not in names:
            faults[f"{path}: mirrors.{name} is no published file's base name{did_you_mean(name, names)}"] = None
    for row, recipe in file.recipes.items():
        for fault in _unknown_overrides({"model": recipe.published.ckpt_model}, as_dict(recipe)):
            faults[f"{path}: recipes.{row}.published.ckpt_{fault}"] = None
    if not faults:
        for name, dataset in file.datasets.items():
            for row, recipe in file.recipes.items():
                for fault in _faults_on(path, name, dataset, row, recipe):
                    faults[fault] = None
    if faults:
        raise UserError("\n".join(faults))


def _check_names(path: Path, raw: dict[str, Any]) -> None:
    """Raises UserError for names of data sets and models that may not become paths or words of a command."""
    data = raw.get("data")
    names = {
        "data.name": [data["name"]] if isinstance(data, dict) and isinstance(data.get("name"), str) else [],
        **{section: list(raw[section]) for section in ("datasets", "recipes") if isinstance(raw.get(section), dict)},
    }
    faults = [
        f"{path}: {where} {'is' if where == 'data.name' else 'has the name'} {name[:120]!r}; a name has {NAME_RULE}"
        for where, there in names.items()
        for name in there
        if not is_name(name)
    ]
    if faults:
        raise UserError("\n".join(faults))


def _secret_fault(source: str) -> str:
    """What is wrong with an address that holds a password or a signature, '' if it holds none."""
    shown = without_secrets(source)
    if shown == source:
        return ""
    return (
        f"{shown!r}, with a password or a signature: DVC would keep it in dvc.lock. Give the whole address in the "
        "environment variable ACTIONZOO_SOURCE instead"
    )


def _source_fault(source: str) -> str:
    """What is wrong with the spelling of a folder, '' if nothing is."""
    is_folder = re.match(r"\s*folders?:", source, re.IGNORECASE)
    if not is_folder or re.fullmatch(r"folder:(/|///)?[^/\s].*", source):
        return ""
    return f"{source!r}; write folder:///path/to/videos, or folder:videos for a path from here"


def _unknown_overrides(sections: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> list[str]:
    faults = []
    for section, values in sections.items():
        if not isinstance(recipe.get(section), dict):
            faults.append(f"{section} is unknown{did_you_mean(section, recipe)}")
        else:
            unknown = [key for key in values if key not in recipe[section]]
            faults += [f"{section}.{key} is unknown{did_you_mean(key, recipe[section])}" for key in unknown]
    return faults


def _faults_on(path: Path, name: str, dataset: Dataset, row: str, recipe: Recipe) -> list[str]:
    plain = _overridden(row, recipe, dataset)
    try:
        resolved = _validated(path, plain, Recipe, f"datasets.{name}.overrides.{recipe.model.family}")
    except UserError as error:
        return [str(error)]
    return [
        f"{path}: on {name}, {row} crops {crop_size} pixels ({section}.crop_size) out of frames whose short side is "
        f"{resolved.augment.resize} (augment.resize); make the crop smaller"
        for section, crop_size in (("augment", resolved.augment.crop_size), ("test", resolved.test.crop_size))
        if crop_size > resolved.augment.resize
    ]


def _plain(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
