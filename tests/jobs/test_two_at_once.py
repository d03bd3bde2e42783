"""Two runs of the same work at once: the second one says so."""

import pytest

from actionzoo.errors import UserError
from actionzoo.files.locks import locked
from actionzoo.job import Job
from actionzoo.jobs.benchmark import benchmark
from actionzoo.jobs.train import train
from actionzoo.run_files import RunFiles
from tests.tiny_network import ROW, tiny_params


def test_a_row_that_is_being_trained_is_not_trained_twice(tiny_project):
    unfinished = RunFiles(tiny_project, "demo", ROW).unfinished
    with (
        locked(RunFiles(tiny_project, "demo", ROW).lock),
        pytest.raises(UserError, match=f"{ROW} is being trained by another process, in .*; wait for it, or stop it"),
    ):
        train(Job.of(tiny_params(), ROW, tiny_project))
    assert [path.name for path in unfinished.iterdir()] == [".lock"]


def test_a_row_that_is_being_measured_is_not_measured_twice(tiny_project):
    with (
        locked(tiny_project / ".scratch/benchmark/demo" / f"{ROW}.lock"),
        pytest.raises(UserError, match=f"{ROW} is being measured by another process"),
    ):
        benchmark(Job.of(tiny_params(), ROW, tiny_project))
