"""What a row costs, measured on a real network and real clips of small size."""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import pytest

from actionzoo.job import Job
from actionzoo.jobs import benchmark as benchmarking
from actionzoo.params import load_params

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


@pytest.fixture(scope="module")
def params():
    params = load_params(PROJECT / "params.yaml")
    return dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, device="cpu", workers=1))


@pytest.fixture(scope="module")
def made(params, tiny_data):
    said = benchmarking.benchmark(Job.of(params, SLOWFAST, tiny_data))
    return said, tiny_data / "runs/demo" / SLOWFAST / "benchmark.json"


def test_speed_memory_and_size_are_measured_and_say_on_what(made):
    said, path = made
    values = json.loads(path.read_text())
    seconds = values["seconds_per_video"]
    assert values["videos_per_second"] == pytest.approx(1 / statistics.median(seconds), rel=1e-3) and len(seconds) >= 3
    low, high = values["videos_per_second_quartiles"]
    assert low <= values["videos_per_second"] <= high
    passes, (low, high) = values["end_to_end_seconds_per_video"], values["end_to_end_quartiles"]
    assert low <= values["end_to_end_videos_per_second"] <= high
    assert values["end_to_end_videos_per_second"] == pytest.approx(1 / statistics.median(passes), rel=1e-3)
    assert 3 <= len(passes) <= values["end_to_end_clips"]
    assert values["machine_was_busy"] == ("machine was busy" in said)
    assert values["frames"] == "(32+4)x2x1 frames" and values["views"] == 2 and values["crop_size"] == 44
    assert values["parameters"] == 34_479_288
    assert values["device"].startswith("cpu") and values["precision"] == "fp32"
    assert f"{values['videos_per_second']:.2f} videos/s of (32+4)x2x1 frames" in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of a process is read from Linux's /proc")
def test_a_training_step_takes_the_weights_three_times_and_more(made):
    values = json.loads(made[1].read_text())
    weights = values["parameters"] * 4 / 2**20
    assert values["memory_of"] == "process" and values["memory_reason"] == ""
    assert weights < values["test_memory_mb"] < values["train_memory_mb"]
    assert values["train_memory_mb"] > 3 * weights  # gradients and momentum are as large


def test_the_table_for_dvc_has_the_same_numbers_rounded(made, tiny_data):
    values = json.loads(made[1].read_text())
    table = json.loads((tiny_data / "metrics/demo/benchmark" / SLOWFAST / "speed.json").read_text())
    assert table["videos_per_second"] == round(values["videos_per_second"], 2)
    assert table["train_memory_mb"] == round(values["train_memory_mb"]) and len(table) == 2


def test_without_clips_the_rest_is_measured(params, tmp_path):
    said = benchmarking.benchmark(Job.of(params, CSN, tmp_path))
    values = json.loads((tmp_path / "runs/demo" / CSN / "benchmark.json").read_text())
    assert values["end_to_end_videos_per_second"] is None and values["end_to_end_clips"] == 0
    assert values["videos_per_second"] > 0 and "with decoding unknown" in said
    assert values["end_to_end_quartiles"] is None and values["end_to_end_seconds_per_video"] == []


@pytest.mark.parametrize(("row", "text"), [(SLOWFAST, "(32+4)x10x3 frames"), (CSN, "32x10x3 frames")])
def test_frames_are_counted_as_in_the_published_table(params, row, text):
    assert benchmarking.frames_text(params.recipes[row]) == text
