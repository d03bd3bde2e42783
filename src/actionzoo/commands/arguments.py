"""Values as people type them on the command line: how each is read, and what a wrong one is answered."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import typer

from ..names import did_you_mean

Form = Literal["videos_256", "videos_320", "frames_256", "frames_320"]
Split = Literal["train", "val", "test"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Measure = Literal["top_k_accuracy", "mean_class_accuracy"]

FORMS: tuple[Form, ...] = get_args(Form)
MEASURES: tuple[Measure, ...] = get_args(Measure)

MAX_WHOLE = 2**31 - 1


def whole(least: int, most: int = MAX_WHOLE) -> Callable[[object], int]:
    """A parser of whole numbers from `least` to `most`."""

    def parse(value: object) -> int:
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
            raise typer.BadParameter(f"{text[:40]!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def number(value: object) -> float:
    """Parse a finite number."""
    parsed = _float(str(value))
    if not math.isfinite(parsed):
        raise typer.BadParameter(f"{str(value)[:40]!r} is no number")
    return parsed


def seconds(value: object) -> float:
    """Parse a length of time above 0."""
    parsed = _float(str(value))
    if not 0 < parsed < math.inf:
        raise typer.BadParameter(f"{str(value)[:40]!r} is no number of seconds above 0")
    return parsed


def one_of(choices: Sequence[str]) -> Callable[[object], str]:
    """A parser of one of `choices`; it suggests the nearest."""

    def parse(value: object) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is unknown{did_you_mean(value, choices)} ({', '.join(choices)})")
        return str(value)

    return parse


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", word, re.IGNORECASE) is not None


def _is_near_measure(word: str) -> bool:
    return word in MEASURES or bool(did_you_mean(word, MEASURES))


_SEVERAL: dict[str, Callable[[str], bool]] = {
    "--eval": _is_near_measure,
    "--topk": _is_number,
    "--weights": _is_number,
}
"""Options that take several values -> which words behind the first value are more of them."""

_RENAMED = {"--row": "--model"}
"""Old spelling of an option -> the present one."""


def present_spelling(words: Sequence[str]) -> list[str]:
    """The words of a command in the form that the parser takes.

    Several values behind one option become an option each, an option's old name becomes the present one:

        --topk 1 5 --row X   ->   --topk 1 --topk 5 --model X

    Words behind `--` stay.
    """
    spelled: list[str] = []
    several = ""  # the option whose values are being read
    for position, word in enumerate(words):
        if word == "--":
            return [*spelled, *words[position:]]
        name, equals, value = word.partition("=")
        is_value = bool(spelled) and spelled[-1] in _SEVERAL
        if is_value:
            spelled.append(word)
        elif several and _SEVERAL[several](word):
            spelled += [several, word]
        elif name in _RENAMED:
            spelled.append(_RENAMED[name] + equals + value)
            several = ""
        else:
            spelled.append(word)
            several = name if name in _SEVERAL else ""
    return spelled
