"""Damaged inputs for each reader of foreign files, always the same; `python -m tests.fuzz` tries more."""

import itertools

import pytest

from tests.fuzz import DOORS, knocks

INPUTS, INPUTS_OF_SLOW_ONES = 80, 12


@pytest.mark.filterwarnings("ignore")  # torch and numpy tell of odd files, too
@pytest.mark.parametrize("door", DOORS)
def test_a_damaged_file_ends_in_a_clear_error(tmp_path, monkeypatch, door):
    monkeypatch.delenv("ACTIONZOO_SOURCE", raising=False)
    number = INPUTS_OF_SLOW_ONES if DOORS[door].is_slow else INPUTS
    findings = [finding for finding in itertools.islice(knocks(door, tmp_path, 0), number) if finding]
    assert not findings, "\n".join(finding.text() for finding in findings)
