"""One rule for names that may become a path, a word of a command or text of a page; and what a mistyped or shortened
name means."""

import difflib
import re
from collections.abc import Iterable

NAME_RULE = "letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_name(text: object) -> bool:
    """Whether `text` may name a data set or a model: names go into paths, dvc.yaml's commands and pages."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


MAX_CLASS_NAME = 200


def class_name_fault(text: str) -> str:
    """Why `text` must not name a class, or ''. Class names become lines of lists and text on pages, never paths."""
    if len(text) > MAX_CLASS_NAME:
        return f"{text[:40]!r}… is no name of a class: it has more than {MAX_CLASS_NAME} letters"
    if not text.isprintable():
        return f"{text[:40]!r} is no name of a class: it has a letter that cannot be printed"
    return ""


def containing(part: str, names: Iterable[str]) -> list[str]:
    """The names that contain `part`, in upper or lower case."""
    return [name for name in names if part.lower() in name.lower()]


def did_you_mean(word: object, words: Iterable[object]) -> str:
    """`; did you mean X?` for the nearest of `words`, or the shortest that contains the word; '' if there is none.

    Goes at the end of an error about an unknown name.
    """
    known = [str(each) for each in words]
    close = difflib.get_close_matches(str(word), known, n=1)
    if not close and len(str(word)) > 2:  # a part of a long name is not near it
        close = sorted((each for each in known if str(word) in each), key=len)[:1]
    return f"; did you mean {close[0]}?" if close else ""
