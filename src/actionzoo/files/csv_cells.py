"""Cells of CSV files that hold foreign text: a spreadsheet shows them, and runs none of them.

Spreadsheets take a cell that begins with = + - @, a tab or a line break for a formula, also behind quotes and blanks,
and in full-width letters. As OWASP advises, such a cell gets a leading apostrophe, which spreadsheets hide:

    =HYPERLINK("http://…")  ->  '=HYPERLINK("http://…")        '=1  ->  ''=1        yoga  ->  yoga

Every text survives `plain_cell(safe_cell(text))`, and files that were written before read as they did.
"""

import re

_FORMULA = re.compile(r"""['"\s]*[=+\-@＝＋－＠\t\r\n]""")  # the full-width ones count, too
_WORD = re.compile(r"[A-Za-z0-9_-]*")


def safe_cell(text: str) -> str:
    """The text as it stands in a CSV."""
    return f"'{text}" if _FORMULA.match(text) else text


def safe_id(video_id: str) -> str:
    """The same for a video's id; an id of letters, digits, - and _ stays as it is.

    Ids of YouTube begin with - now and then, other programs look clips up by them, and such a word runs nothing.
    """
    return video_id if _WORD.fullmatch(video_id) else safe_cell(video_id)


def plain_cell(cell: str) -> str:
    """The text of which `safe_cell` or `safe_id` made this cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell
