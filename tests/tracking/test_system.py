"""What is measured of a machine while it trains."""

import json
import shutil
import threading

import pytest

from actionzoo.tracking.system import gpu_metrics, parse_gpu, sample_regularly


def test_a_sample_has_cpu_memory_and_disk(tmp_path):
    is_ending, path = threading.Event(), tmp_path / "system.jsonl"
    thread = threading.Thread(target=sample_regularly, args=(path, is_ending))
    thread.start()
    while not path.is_file() or not path.read_text().endswith("\n"):
        assert thread.is_alive()
        thread.join(0.05)
    is_ending.set()
    thread.join(60)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_usage_percentage"} <= line.keys()


def test_a_line_of_nvidia_smi_has_mlflow_s_names():
    assert parse_gpu("1, 97, 40000, 80000, 612.34") == {
        "gpu_1_utilization_percentage": 97.0,
        "gpu_1_memory_usage_megabytes": 41943.0,
        "gpu_1_memory_usage_percentage": 50.0,
        "gpu_1_power_usage_watts": 612.34,
    }
    assert parse_gpu("0, 5, [N/A], 80000, [N/A]") == {"gpu_0_utilization_percentage": 5.0}
    assert parse_gpu("No devices were found") == {}


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver")
def test_gpus_are_measured():
    assert {"gpu_0_utilization_percentage", "gpu_0_memory_usage_megabytes"} <= gpu_metrics().keys()
