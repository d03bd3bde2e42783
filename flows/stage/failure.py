"""Why a stage failed, in its own words."""

import re
from collections.abc import Sequence

from actionzoo.process.progress import is_progress_line

KEPT_LINES = 200
"""How many of the last lines of a stage `reason` can make use of."""

MAX_LINES, MAX_CHARACTERS = 8, 2000

_SENTENCE = re.compile(r"[\w.@-]+( [\w.@-]+)?: error: ")  # process/stage.py ends so, with the remedy
_BEGIN_OF_DVC, _END_OF_DVC = re.compile(r"Running stage '.*':"), re.compile(r"ERROR: failed to reproduce '")


def reason(lines: Sequence[str], status: int) -> str:
    """The sentence with which a stage ended, as far as its last lines hold one; else the last lines themselves.

    `lines`: output of `dvc repro`. `status`: its exit status, for a stage that said nothing. Lines of progress are left
    out, and what DVC says of the failure too if the stage has said anything.
    """
    said = [line for line in lines if line.strip() and not is_progress_line(line)]
    of_dvc = [number for number, line in enumerate(said) if _BEGIN_OF_DVC.fullmatch(line)]
    if of_dvc and len(own := [line for line in said[of_dvc[-1] + 1 :] if not line.startswith("> ")]) > 1:
        said = own
    if len(said) > 1 and _END_OF_DVC.match(said[-1]):
        said.pop()
    if starts := [number for number, line in enumerate(said) if _SENTENCE.match(line)]:
        said = said[starts[-1] :][:MAX_LINES]
    text = "\n".join(said[-MAX_LINES:])
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]} … {text[-MAX_CHARACTERS // 2 :]}"
    return text or f"dvc ended with status {status} and said nothing"
