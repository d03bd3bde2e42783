"""Faults of settings that people write, in sentences: file, key, value, and a near miss where there is one."""

import dataclasses
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import UserError
from ..files.addresses import without_secrets
from ..names import NAME_RULE, did_you_mean, is_name
from ..recipe import Published, Recipe, as_dict
from .settings import Dataset

T = TypeVar("T")


def validated(path: Path, raw: object, adapter: TypeAdapter[T], where: str = "", known: Iterable[str] = ()) -> T:
    """`raw`, plain values that were read from `path`, as the adapter's type.

    `where` is the key that `raw` stands under; `known` are the keys that a misspelt one may mean. Raises UserError with
    a line for each fault.
    """
    try:
        # by way of JSON: strict, and still lists may become tuples
        return adapter.validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        faults = [f"{path}: {_sentence(raw, where, fault, known)}" for fault in error.errors()]
        raise UserError("\n".join(faults)) from None


def field_names(kind: Any) -> list[str]:
    """Names of all fields of a dataclass, and of the dataclasses inside it: keys that a misspelt key may mean."""
    names: set[str] = set()
    waiting, seen = [kind], set()
    while waiting:
        kind = waiting.pop()
        if dataclasses.is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            hints = typing.get_type_hints(kind)
            names |= {field.name for field in dataclasses.fields(kind)}
            waiting += [hints[field.name] for field in dataclasses.fields(kind)]
        waiting += typing.get_args(kind)
    return sorted(names)


def check_names(path: Path, raw: dict[str, Any]) -> None:
    """Raises UserError for names of data sets and models that must not become paths or words of a command."""
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


def source_fault(source: str) -> str:
    """The fault in the spelling of a folder; '' if there is none."""
    is_folder = re.match(r"\s*folders?:", source, re.IGNORECASE)
    if not is_folder or re.fullmatch(r"folder:(/|///)?[^/\s].*", source):
        return ""
    return f"{source!r}; write folder:///path/to/videos, or folder:videos for a path from here"


def unknown_overrides(sections: Mapping[str, Mapping[str, object]], recipe: Mapping[str, Any]) -> list[str]:
    """A sentence for each section, and each key of a section, that the recipe does not have."""
    faults = []
    for section, values in sections.items():
        if not isinstance(recipe.get(section), dict):
            faults.append(f"{section} is unknown{did_you_mean(section, recipe)}")
        else:
            unknown = [key for key in values if key not in recipe[section]]
            faults += [f"{section}.{key} is unknown{did_you_mean(key, recipe[section])}" for key in unknown]
    return faults


def dangling_names(
    recipes: Mapping[str, Recipe],
    datasets: Mapping[str, Dataset],
    published: Mapping[str, Published],
    mirrors: Iterable[str],
) -> Iterator[str]:
    """A sentence for each name in params.yaml that refers to nothing, and each source that must not stand there.

    `mirrors` are the base names that have other addresses.
    """
    families = {recipe.model.family for recipe in recipes.values()}
    for name, dataset in datasets.items():
        where = f"datasets.{name}"
        if fault := source_fault(dataset.source) or _secret_fault(dataset.source):
            yield f"{where}.source is {fault}"
        for model in dataset.demo_recipes:
            if model not in recipes:
                yield f"{where}.demo_recipes names {model}, which is unknown{did_you_mean(model, recipes)}"
        yield from _faults_of_inheritance(where, dataset, datasets)
        for key, sections in dataset.overrides.items():
            models = [model for model, recipe in recipes.items() if key in (model, recipe.model.family)]
            if not models:
                yield f"{where}.overrides.{key} is unknown{did_you_mean(key, [*families, *recipes])}"
            for model in models:
                for fault in unknown_overrides(sections, as_dict(recipes[model])):
                    yield f"{where}.overrides.{key}.{fault}"
    addresses = [address for entry in published.values() for address in (entry.ckpt, entry.infer_ckpt)]
    addresses += [recipe.init.weights for recipe in recipes.values()]
    names = {address.rsplit("/", 1)[-1] for address in addresses if address}
    for name in mirrors:
        if name not in names:
            yield f"mirrors.{name} is no published file's base name{did_you_mean(name, names)}"


def _faults_of_inheritance(where: str, dataset: Dataset, datasets: Mapping[str, Dataset]) -> Iterator[str]:
    if (other := dataset.overrides_of) is None:
        return
    if other not in datasets:
        yield f"{where}.overrides_of is {other!r}, which is not under datasets{did_you_mean(other, datasets)}"
    elif datasets[other].overrides_of is not None:
        yield f"{where}.overrides_of is {other!r}, which takes its own from elsewhere; name the data set that has them"


def _secret_fault(source: str) -> str:
    """The fault of an address that holds a password or a signature; '' if it holds none."""
    shown = without_secrets(source)
    if shown == source:
        return ""
    return (
        f"{shown!r}, with a password or a signature: DVC would keep it in dvc.lock. Give the whole address in the "
        "environment variable ACTIONZOO_SOURCE instead"
    )


def _sentence(raw: Any, where: str, fault: Any, known: Iterable[str]) -> str:
    """One of pydantic's faults. Their locations also name the branch of a union, which is left out here."""
    place, keys = raw, [where] if where else []
    for key in fault["loc"]:
        if (isinstance(place, dict) and key in place) or (isinstance(place, list) and isinstance(key, int)):
            place = place[key] if isinstance(place, dict) or key < len(place) else None
            keys.append(str(key))
        elif fault["type"] == "missing" and key == fault["loc"][-1]:
            keys.append(str(key))
    name = ".".join(keys)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is unknown{did_you_mean(keys[-1], known)}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    value, message = fault["input"], fault["msg"]
    hint = "; write 1.0e-4, not 1e-4" if isinstance(value, str) and "e" in value and _is_number(value) else ""
    return f"{name} is {value!r}: {message[0].lower()}{message[1:]}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
