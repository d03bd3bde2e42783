"""The command line in this process."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from actionzoo.cli import main

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def actionzoo(monkeypatch, capsys) -> Callable[..., Done]:
    """Run `actionzoo` with these words, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str | os.PathLike[str]) -> Done:
        monkeypatch.setattr(sys, "argv", ["actionzoo", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 0
        told = capsys.readouterr()
        return Done(status, told.out, told.err)

    return run


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A working directory with the shipped params.yaml and published.yaml, and nothing else."""
    for name in ("params.yaml", "published.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
