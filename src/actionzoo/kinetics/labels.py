"""Kinetics-400's classes, and the mapping from a data set's classes to those that a network knows."""

from collections.abc import Sequence
from importlib.resources import files

from ..errors import UserError
from .annotations import class_key


def kinetics400() -> list[str]:
    """The 400 class names by label; sorted, as in all released weights."""
    return files(__package__).joinpath("k400_classes.txt").read_text(encoding="utf-8").splitlines()


def map_labels(classes: Sequence[str], known: Sequence[str]) -> list[int]:
    """The position of each of `classes` in `known`; different spellings of a class are equal.

    Raises UserError that names the classes which `known` does not have.
    """
    label_of = {class_key(name): number for number, name in enumerate(known)}
    unknown = [name for name in classes if class_key(name) not in label_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(classes)} classes are none of the {len(known)} that the network knows: "
            f"{', '.join(repr(name) for name in unknown[:5])}{', …' if len(unknown) > 5 else ''}"
        )
    return [label_of[class_key(name)] for name in classes]
