"""Cells that a spreadsheet would run."""

import csv
import io

import pytest

from actionzoo.files.csv_cells import plain_cell, safe_cell, safe_id

FORMULAS = [
    '=HYPERLINK("http://example.org","yoga")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1,2)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    '"=1',
    "'=1",
    "' \"' =1",
    "＝1+1",  # spreadsheets for Japanese take the full-width sign, too
    "=",
]
HARMLESS = ["", "yoga", "massaging person's head", "'quoted'", "a=b", "1", "jumping-jacks", "中文", '"', "'"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_begins_with_an_apostrophe_and_comes_back_as_it_was(text):
    assert safe_cell(text) == safe_id(text) == f"'{text}"
    assert plain_cell(safe_cell(text)) == text
    assert plain_cell(safe_cell(safe_cell(text))) == safe_cell(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay_as_they_are_both_ways(text):
    assert safe_cell(text) == plain_cell(text) == text


def test_ids_of_youtube_stay_as_they_are_and_nothing_else_that_begins_with_a_minus_does():
    assert (
        safe_id("-0B3eQUuC4v_000084_000094") == plain_cell("-0B3eQUuC4v_000084_000094") == "-0B3eQUuC4v_000084_000094"
    )
    assert safe_id("-1+1") == "'-1+1"


def test_the_apostrophe_stands_inside_the_quotes_of_a_csv():
    text = io.StringIO()
    csv.writer(text).writerow([safe_cell('=A1&"x"')])
    (cells,) = csv.reader(io.StringIO(text.getvalue()))
    assert cells == ['\'=A1&"x"'] and plain_cell(cells[0]) == '=A1&"x"'
