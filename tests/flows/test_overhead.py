"""The benchmark of a flow run's cost measures a graph that was built and is up to date."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "flow_overhead.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("flow_overhead_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_question_costs_about_one_dvc_status(benchmark, tmp_path, with_server):
    """Not one for each stage."""
    figures = benchmark.measure(tmp_path / "repository", 7, with_server, repeats=1)
    assert 0 < figures.question < 3 * figures.status < figures.build
    assert len(figures.text()) == len(benchmark.HEADER)


@pytest.mark.parametrize("stages", [1, 10, 57])
def test_the_graph_has_so_many_stages(benchmark, make_repository, monkeypatch, stages):
    from flows.graph import read_graph

    monkeypatch.chdir(make_repository(benchmark.graph(stages)))
    assert len(read_graph()[1]) == stages
