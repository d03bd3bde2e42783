"""A program that prints what nvidia-smi prints stands in for it: the devices of these machines are not here."""

import re

import pytest

from actionzoo.errors import UserError
from flows.stage import gpus
from flows.stage.gpus import Gpu, Gpus, visible_gpus

TWO_A100 = """
echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)'
echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8f2a11c3-1111-2222-3333-444444444444)'
"""
FIRST, SECOND = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-8f2a11c3-1111-2222-3333-444444444444"

ONE_SPLIT = """
echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)'
echo '  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)'
echo '  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)'
echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8f2a11c3-1111-2222-3333-444444444444)'
"""

UNLIKE = """
echo 'GPU 0: NVIDIA T4 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)'
echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8f2a11c3-1111-2222-3333-444444444444)'
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function: script -> a machine whose nvidia-smi is that script; None: it has none. No CUDA variable is set."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def make(script: str | None) -> None:
        if script is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}")
            (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script is not None else str(tmp_path))

    return make


def test_all_gpus_of_the_machine_are_used_and_numbered_as_nvidia_smi_does(machine):
    machine(TWO_A100)
    assert visible_gpus() == Gpus((Gpu("0", FIRST), Gpu("1", SECOND)), sets_order=True)


def test_a_machine_without_nvidia_smi_has_no_gpu(machine):
    machine(None)
    assert visible_gpus().found == ()


def test_a_machine_whose_nvidia_smi_finds_none_has_no_gpu(machine):
    machine("echo 'No devices were found'; exit 6")
    assert visible_gpus().found == ()


def test_mig_devices_stand_for_the_gpu_that_is_split(machine):
    machine(ONE_SPLIT)
    names = [gpu.name for gpu in visible_gpus().found]
    assert names == ["MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d", "1"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "status 18: Failed to init"),
        ("exec sleep 600", "does not answer within"),
    ],
)
def test_a_broken_driver_is_an_error_and_not_no_gpu(machine, monkeypatch, script, says):
    monkeypatch.setattr(gpus, "NVIDIA_SMI_SECONDS", 0.5)
    machine(script)
    with pytest.raises(UserError, match=rf"{says}.*to build without GPUs, set CUDA_VISIBLE_DEVICES= \(empty\)"):
        visible_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus().found == ()


@pytest.mark.parametrize("listed", ["", "-1"])
def test_a_variable_that_lists_none_hides_all(machine, monkeypatch, listed):
    machine(TWO_A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus().found == ()


def test_names_in_the_variable_are_kept_and_mean_the_devices_of_nvidia_smi(machine, monkeypatch):
    machine(TWO_A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-5d5")
    assert visible_gpus() == Gpus((Gpu("1", SECOND), Gpu("GPU-5d5", FIRST)), sets_order=False)


def test_one_device_named_twice_is_one(machine, monkeypatch):
    machine(TWO_A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"0,{FIRST}")
    assert visible_gpus().found == (Gpu("0", FIRST),)


def test_indices_in_an_order_that_is_not_known_mean_no_device_of_nvidia_smi(machine, monkeypatch):
    """CUDA numbers GPUs of different models by their speed, unless it is told otherwise."""
    machine(UNLIKE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible_gpus().found == (Gpu("0", "0"),)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert visible_gpus().found == (Gpu("0", FIRST),)


def test_gpus_may_be_chosen_by_index_or_uuid(machine):
    machine(TWO_A100)
    found = visible_gpus()
    assert found.chosen(None) == found
    assert found.chosen(["1"]).found == (Gpu("1", SECOND),)
    assert found.chosen([FIRST, "GPU-8f2a"]).found == (Gpu(FIRST, FIRST), Gpu("GPU-8f2a", SECOND))


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(machine):
    machine(TWO_A100)
    shown = re.escape(f"gpus names 4, but this machine shows 0 ({FIRST}), 1 ({SECOND}); leave it out to use all")
    with pytest.raises(UserError, match=shown):
        visible_gpus().chosen(["0", "4"])


@pytest.mark.gpu
def test_the_gpus_of_this_machine_are_those_that_torch_sees(monkeypatch):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(visible_gpus().found) == torch.cuda.device_count()
