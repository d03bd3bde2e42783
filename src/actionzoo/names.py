"""Names that people type and strangers send: one rule for what may become a path, a command's word or a page's text."""

import difflib
import re
from collections.abc import Iterable

NAME_RULE = "letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_name(text: object) -> bool:
    """Whether `text` may name a data set or a model: it goes into paths, dvc.yaml's commands and pages."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def did_you_mean(word: object, words: Iterable[object]) -> str:
    """`; did you mean X?` for the nearest of `words`, or for one that contains the word; '' where there is none.

    Ends an error about an unknown name.
    """
    known = [str(each) for each in words]
    close = difflib.get_close_matches(str(word), known, n=1)
    if not close and len(str(word)) > 2:  # a part of a long name is not near it
        close = sorted((each for each in known if str(word) in each), key=len)[:1]
    return f"; did you mean {close[0]}?" if close else ""
