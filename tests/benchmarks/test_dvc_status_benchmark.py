"""The benchmark's project is one that DVC takes for finished, and DVC hashes nothing but the small files of it."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "dvc_status.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("dvc_status_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_dvc_status_hashes_the_small_files_once_and_no_shard(benchmark, tmp_path):
    figures = benchmark.measure(tmp_path / "project", parts=4, clips=40)
    assert figures.num_shards == 4 * 4
    assert figures.stored_bytes == 40 * sum(benchmark.CLIP_BYTES.values())
    assert figures.again_hashed_bytes == 0
    # a file once as an out, and again as a dependency of the next stage at most
    assert 0 < figures.first_hashed_bytes <= 2 * figures.tracked_bytes < figures.stored_bytes / 1000
    assert "4 parts, 40 clips: 16 shards" in figures.text()


def test_parts_are_shared_out_as_in_kinetics_400(benchmark):
    numbers = [split for split, _ in benchmark._numbers(301)]
    assert {split: numbers.count(split) for split in benchmark.SHARES} == benchmark.SHARES
    with pytest.raises(SystemExit, match="--parts is 2"):
        benchmark._numbers(2)
