"""Faults of YAML and JSON that people write, in sentences: file, key, value, and a near miss where there is one."""

import dataclasses
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from .errors import UserError
from .names import did_you_mean

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
