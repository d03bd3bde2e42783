"""params.yaml and published.yaml as frozen, validated types: the only place where their values are judged.

Code behind `load_params` does not check them again. Functions take the values they need, not the whole of Params.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ..errors import UserError
from ..files.data_folder import DataFolder
from ..files.yaml_files import read_yaml
from ..names import containing, did_you_mean
from ..recipe import (
    STRICT,
    CSNModel,
    Model,
    Published,
    Recipe,
    SlowFastModel,
    TestSpec,
    as_dict,
    compare,
)
from .faults import check_names, dangling_names, field_names, source_fault, unknown_overrides, validated
from .settings import Data, Dataset, Prepare, Runtime

_log = logging.getLogger(__name__)


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
    """The values of params.yaml and published.yaml."""

    path: Path
    """Of params.yaml."""
    name: str
    """Of the chosen data set."""
    dataset: Dataset
    datasets: dict[str, Dataset]
    runtime: Runtime
    prepare: Prepare
    recipes: dict[str, Recipe]
    """Model -> its recipe as written, before the data set's overrides; in the order of the file."""
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
    """Model -> its entry in published.yaml. Models of one's own need none."""
    mirrors: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Base name of a published file -> other URLs or paths of it, tried in order when the first fails."""
    data_root_setting: str = "data"
    """data.root, or the environment variable ACTIONZOO_DATA; absolute, or relative to the workspace."""

    @property
    def root(self) -> Path:
        """The project's folder: it holds params.yaml and everything that DVC tracks, data/, runs/ and so on."""
        return self.path.parent

    @property
    def workspace(self) -> Path:
        """The folder that this project's experiments share; see `workspace_of`."""
        return workspace_of(self.root)

    @property
    def data_root(self) -> Path:
        """The folder of the archives and shards of all data sets. DVC does not track it; workspaces may share it."""
        return self.data_root_of(self.root)

    def data_root_of(self, root: Path) -> Path:
        """`data_root` for a project in the folder `root`."""
        return workspace_of(root) / Path(self.data_root_setting).expanduser()

    def folder(self, kind: str, root: Path | None = None) -> Path:
        """`root/kind/<data set>`, e.g. runs/demo; `root` is the project's folder if None.

        folder("data") holds what DVC tracks of the data set: inventory, manifests, class lists.
        """
        return (self.root if root is None else root) / kind / self.name

    def data_folder(self, root: Path | None = None) -> DataFolder:
        """The data set's files in both places: root/data/<data set> and <data root>/<data set>."""
        root = self.root if root is None else root
        return DataFolder(self.folder("data", root), self.data_root_of(root) / self.name)

    def data_scratch(self, stage: str) -> Path:
        """Unfinished work, locks and records of a data stage: <data root>/.scratch/<stage>/<data set>."""
        return self.data_root / ".scratch" / stage / self.name

    def models(self) -> list[str]:
        """Names of all models, in the order of the file."""
        return list(self.recipes)

    def resolve(self, model: str) -> str:
        """The full name of a model: `model` itself, or the only name that contains it, in upper or lower case.

        Raises UserError for a part of several names, or of none.
        """
        if model in self.recipes:
            return model
        found = containing(model, self.recipes)
        if len(found) > 1:
            names = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
            raise UserError(f"{model!r} is part of the names of {len(found)} models; give more of one: {names}")
        if not found:
            self.check_model(model)
        return found[0]

    def check_model(self, model: str) -> None:
        """Raises UserError for a name that is not under recipes."""
        if model not in self.recipes:
            raise UserError(
                f"{self.path}: recipes.{model} is unknown{did_you_mean(model, self.recipes)}; "
                f"`actionzoo models` lists all {len(self.recipes)}"
            )

    def recipe(self, model: str) -> Recipe:
        """The recipe of `model` on the chosen data set, overrides applied. Raises UserError for an unknown model."""
        self.check_model(model)
        return _RECIPE.validate_json(json.dumps(_overridden(model, self.recipes[model], self.dataset, self.datasets)))

    def published_of(self, model: str) -> Published | None:
        """What was published for `model`; None for a model of one's own. Raises UserError for an unknown model."""
        self.check_model(model)
        return self.published.get(model)

    def overrides(self, model: str) -> list[str]:
        """What the data set changes in the recipe of `model`, as `schedule.epochs: 256 -> 10`."""
        return compare(self.recipes[model], self.recipe(model))

    def replaced(self, model: str) -> dict[str, dict[str, Any]]:
        """Section of the recipe of `model` -> its values that the data set replaces, as plain values.

        Every section is there; it is empty where the data set replaces nothing, or by an equal value.
        """
        written, used = as_dict(self.recipes[model]), as_dict(self.recipe(model))
        return {
            section: {key: value for key, value in values.items() if value != written[section][key]}
            for section, values in used.items()
            if isinstance(values, dict)
        }

    def changed(self, model: str, /, *, seed: int | None = None, **sections: Mapping[str, object]) -> "Params":
        """The same with other values in sections of the recipe of `model`; they count as overrides."""
        recipes = self.recipes
        if seed is not None:
            recipes = recipes | {model: dataclasses.replace(recipes[model], seed=seed)}
        of_model = dict(self.dataset.overrides.get(model, {}))
        for section, values in sections.items():
            of_model[section] = {**of_model.get(section, {}), **values}
        dataset = dataclasses.replace(self.dataset, overrides=self.dataset.overrides | {model: of_model})
        return dataclasses.replace(self, recipes=recipes, dataset=dataset)


def workspace_of(root: Path) -> Path:
    """The folder that a project in `root` shares with its experiments.

    It is `root` as given, unless that is the temporary project of a queued experiment,
    <workspace>/.dvc/tmp/exps/…: what is not tracked by DVC (data root, .scratch, downloads) lies in the workspace then.
    """
    parts = root.absolute().parts
    for number in range(1, len(parts) - 2):
        if parts[number : number + 3] == _EXPERIMENTS:
            return Path(*parts[:number])
    return root


_EXPERIMENTS = (".dvc", "tmp", "exps")


def find_project(start: Path | None = None) -> Path:
    """The project's folder: `start` or its nearest parent with a params.yaml, else the checkout that this package is
    installed from (`pip install -e`).

    `start` is the working directory if None. Where `start` is the project itself, it is returned as given, so that
    paths in messages stay short. Raises UserError.
    """
    here = start or Path()
    checkout = Path(__file__).resolve().parents[3]
    for folder in (here, *here.absolute().parents, checkout):
        if (folder / "params.yaml").is_file():
            return folder
    raise UserError(f"no params.yaml in {here.absolute()} or above; run inside the project's folder")


def load_params(path: str | Path | None = None) -> Params:
    """The values of params.yaml, and of published.yaml beside it; by default those of `find_project`.

    The environment variable ACTIONZOO_SOURCE replaces the chosen data set's source, ACTIONZOO_DATA data.root. Raises
    UserError that lists every fault: file, key, value, and a near miss where there is one.
    """
    path = find_project() / "params.yaml" if path is None else Path(path)
    raw = read_yaml(path, "run from the project's folder, where params.yaml lies")
    moved = _take_what_moved(path, raw)
    check_names(path, raw)
    file = validated(path, raw, _FILE, known=field_names(_File))
    published = _read_published(path.with_name("published.yaml"), file.recipes, moved)
    name = file.data.name
    if name not in file.datasets:
        raise UserError(
            f"{path}: data.name is {name!r}, which is not under datasets{did_you_mean(name, file.datasets)}; "
            f"there are {', '.join(file.datasets)}"
        )
    dataset = file.datasets[name]
    if source := os.environ.get("ACTIONZOO_SOURCE"):
        dataset = dataclasses.replace(dataset, source=source)
        if fault := source_fault(source):
            raise UserError(f"the environment variable ACTIONZOO_SOURCE is {fault}")
    params = Params(
        path=path,
        name=name,
        dataset=dataset,
        datasets=file.datasets,
        runtime=file.runtime,
        prepare=file.prepare,
        recipes=file.recipes,
        published=published,
        mirrors=file.mirrors,
        data_root_setting=os.environ.get("ACTIONZOO_DATA") or file.data.root,
    )
    names = dangling_names(file.recipes, file.datasets, published, file.mirrors)
    # each fault once: models share most of them
    faults = dict.fromkeys(names) or dict.fromkeys(_faults_of_recipes(params))
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return params


def network_of(recipe: Mapping[str, object], where: Path) -> tuple[SlowFastModel | CSNModel, TestSpec]:
    """The network and the test spec of a recipe as plain values, as the file `where` keeps it.

    Other keys are ignored: an older version may have written them. Raises UserError.
    """
    sections = [recipe.get(name) for name in ("clips", "augment", "test")]
    # training crops by augment.crop_size, evaluation by test.crop_size: the later one is meant
    spec = {key: value for section in sections if isinstance(section, dict) for key, value in section.items()}
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{where}: its recipe has no clips, augment and test; no version of actionzoo wrote it")
    model = validated(where, recipe.get("model"), _MODEL, "recipe.model", field_names(Model))
    return model, validated(where, spec, _TEST_SPEC, "recipe", field_names(TestSpec))


def digest(*parts: object) -> str:
    """sha256 of plain values and sections; equal values give equal digests on every machine."""
    plain = [as_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


_FILE: TypeAdapter[_File] = TypeAdapter(_File)
_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)
_MODEL: TypeAdapter[SlowFastModel | CSNModel] = TypeAdapter(Model)
_TEST_SPEC: TypeAdapter[TestSpec] = TypeAdapter(TestSpec)
_PUBLISHED: TypeAdapter[dict[str, Published]] = TypeAdapter(dict[str, Published])


def _take_what_moved(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Take out of `raw` what the version before kept in params.yaml: gives model -> its `published` section.

    To be deleted with the next version.
    """
    recipes, datasets = raw.get("recipes"), raw.get("datasets")
    published = {}
    for model, recipe in recipes.items() if isinstance(recipes, dict) else ():
        if isinstance(recipe, dict) and "published" in recipe:
            published[model] = recipe.pop("published")
    if published:
        _note(f"{path}: `published` of {len(published)} recipes is read from here; its place is published.yaml now")
    for name, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict) and "tour" in dataset and "demo_recipes" not in dataset:
            dataset["demo_recipes"] = dataset.pop("tour")
            _note(f"{path}: datasets.{name}.tour is called demo_recipes now")
    _move_batch_norm(path, raw.get("runtime"), recipes)
    return published


def _move_batch_norm(path: Path, runtime: Any, recipes: Any) -> None:
    """Give `runtime.batch_norm` of the version before to all recipes. Raises UserError if they have their own.

    To be deleted with the next version.
    """
    if not isinstance(runtime, dict) or "batch_norm" not in runtime:
        return
    place = "it belongs to the recipe: recipes.<model>.optim.batch_norm, or optim.batch_norm in a data set's overrides"
    values = recipes.values() if isinstance(recipes, dict) else ()
    sections = [recipe.get("optim") for recipe in values if isinstance(recipe, dict)]
    waiting = [optim for optim in sections if isinstance(optim, dict) and "batch_norm" not in optim]
    if not waiting:
        raise UserError(f"{path}: runtime.batch_norm is not read any more; {place}. Delete the key")
    value = runtime.pop("batch_norm")
    for optim in waiting:
        optim["batch_norm"] = value
    _note(
        f"{path}: runtime.batch_norm is read for the {len(waiting)} recipes without a value of their own; {place}. "
        "Until it stands there, DVC does not see it change"
    )


@functools.cache
def _note(text: str) -> None:
    """Log `text`, once in a process."""
    _log.warning(text)


def _read_published(path: Path, recipes: Mapping[str, Recipe], moved: dict[str, Any]) -> dict[str, Published]:
    """Model -> what was published for it, of the models that have recipes. Entries in `moved` win over the file's."""
    if moved and not path.exists():
        raw: dict[str, Any] = {}
    else:
        raw = read_yaml(path, "restore it: git checkout published.yaml")
    new = [model for model in recipes if model not in raw]
    raw |= moved
    raw = {model: _with_languages(entry) for model, entry in raw.items()}
    published = validated(path, raw, _PUBLISHED, known=field_names(Published))
    faults = [
        f"{path}: {model[:120]} has no recipe in params.yaml{meant}; rename the entry, or delete it"
        for model in published
        if model not in recipes and (meant := did_you_mean(model, new))
    ]
    published = {model: published[model] for model in recipes if model in published}
    for model, entry in published.items():
        network = as_dict(recipes[model].model)
        unknown = unknown_overrides({"model": entry.ckpt_model}, {"model": network})
        faults += [f"{path}: {model}.ckpt_{fault}" for fault in unknown]
        if not unknown:
            validated(path, network | entry.ckpt_model, _MODEL, f"{model}.ckpt_model")
    if faults:
        raise UserError("\n".join(faults))
    return published


def _with_languages(entry: Any) -> Any:
    """An entry of published.yaml whose note, if it is plain text, is the English one."""
    if isinstance(entry, dict) and isinstance(entry.get("note"), str):
        return entry | {"note": {"en": entry["note"]}}
    return entry


def _overridden(model: str, recipe: Recipe, dataset: Dataset, datasets: Mapping[str, Dataset]) -> dict[str, Any]:
    """The recipe with the overrides of the data set's `overrides_of`, then with its own; family first, then model."""
    plain = as_dict(recipe)
    inherited = [datasets[dataset.overrides_of].overrides] if dataset.overrides_of else []
    for overrides in (*inherited, dataset.overrides):
        for key in (recipe.model.family, model):
            for section, values in overrides.get(key, {}).items():
                plain[section] |= values
    return plain


def _faults_of_recipes(params: Params) -> Iterator[str]:
    """Values that overrides give to recipes and that do not fit: on every data set, not only on the chosen one."""
    for name, dataset in params.datasets.items():
        if dataset.overrides_of and not dataset.overrides:
            continue  # judged there
        for model, recipe in params.recipes.items():
            plain = _overridden(model, recipe, dataset, params.datasets)
            try:
                used = validated(params.path, plain, _RECIPE, f"datasets.{name}.overrides.{recipe.model.family}")
            except UserError as error:
                yield from str(error).replace(f"{params.path}: ", "").splitlines()
                continue
            for section, crop_size in (("augment", used.augment.crop_size), ("test", used.test.crop_size)):
                if crop_size > used.augment.resize:
                    yield (
                        f"on {name}, {model} crops {crop_size} pixels ({section}.crop_size) out of frames whose short "
                        f"side is {used.augment.resize} (augment.resize); make the crop smaller"
                    )
