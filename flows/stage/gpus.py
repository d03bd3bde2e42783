"""The GPUs of this machine: their names as in CUDA_VISIBLE_DEVICES, and which names mean the same device."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from actionzoo.errors import UserError

NVIDIA_SMI_SECONDS = 30.0
_LINE = re.compile(r"^\s*(?:GPU (?P<index>\d+): (?P<model>.*?)|MIG .*?) ?\(UUID: (?P<uuid>[^)]+)\)")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG device, that stages may use."""

    name: str
    """As CUDA_VISIBLE_DEVICES names it: an index, a UUID or a MIG device."""
    uuid: str
    """The same for all names of the device; the name itself where nvidia-smi cannot tell."""

    def __str__(self) -> str:
        return self.name if self.name == self.uuid else f"{self.name} ({self.uuid})"


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a flow may use."""

    found: tuple[Gpu, ...]
    sets_order: bool = False
    """Whether indices are those of nvidia-smi, and stages need CUDA_DEVICE_ORDER=PCI_BUS_ID to read them so."""

    def chosen(self, names: Sequence[str] | None) -> "Gpus":
        """Those that `names` name, in that order; all if None. Raises UserError for a name of none of them."""
        if names is None:
            return self
        by_name = {gpu.uuid: gpu for gpu in self.found} | {gpu.name: gpu for gpu in self.found}
        chosen: dict[str, Gpu] = {}
        for name in names:
            found = [by_name[name]] if name in by_name else _with_prefix(name, self.found)
            if len(found) != 1:
                shown = ", ".join(map(str, self.found)) or "none"
                raise UserError(f"gpus names {name[:80]}, but this machine shows {shown}; leave it out to use all")
            chosen.setdefault(found[0].uuid, Gpu(name, found[0].uuid))
        return Gpus(tuple(chosen.values()), self.sets_order)


def visible_gpus() -> Gpus:
    """The GPUs that CUDA_VISIBLE_DEVICES lists if it is set, else all of this machine.

    Raises UserError if nvidia-smi is there and fails: GPUs that cannot be reached must not look like none.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if listed is None else [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    if names == []:
        return Gpus(())
    devices = _listed_by_nvidia_smi()
    if names is None:
        return Gpus(tuple(Gpu(device.name, device.uuid) for device in devices), sets_order=True)
    # CUDA's own order of indices is that of nvidia-smi if all are of one model, or if it is told so.
    same_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({device.model for device in devices}) <= 1
    by_index = {device.index: device.uuid for device in reversed(devices)} if same_order else {}
    found: dict[str, Gpu] = {}
    for name in names:
        matching = _with_prefix(name, [Gpu(device.name, device.uuid) for device in devices])
        uuid = matching[0].uuid if len(matching) == 1 else by_index.get(name, name)
        found.setdefault(uuid, Gpu(name, uuid))
    return Gpus(tuple(found.values()))


@dataclass(frozen=True)
class _Device:
    index: str
    """Of the GPU; for a MIG device, of the GPU that it is a part of."""
    name: str
    uuid: str
    model: str


def _listed_by_nvidia_smi() -> list[_Device]:
    """The devices of `nvidia-smi -L`. A GPU that is split into MIG devices is replaced by these."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
    except subprocess.TimeoutExpired:
        raise _broken(f"does not answer within {NVIDIA_SMI_SECONDS:.0f} s") from None
    except OSError as error:
        raise _broken(f"cannot be started ({error.strerror})") from None
    said = f"{listed.stdout}\n{listed.stderr}".strip()
    if "no devices were found" in said.lower():
        return []
    if listed.returncode:
        raise _broken(f"ends with status {listed.returncode}: {' '.join(said.split())[:200]}")
    devices: list[_Device] = []
    for line in listed.stdout.splitlines():
        if not (match := _LINE.match(line)):
            continue
        index, uuid = match["index"], match["uuid"]
        if index is not None:
            devices.append(_Device(index, index, uuid, match["model"]))
        elif devices:
            gpu = devices[-1]
            if gpu.name == gpu.index:
                devices.pop()
            devices.append(_Device(gpu.index, uuid, uuid, gpu.model))
    return devices


def _with_prefix(name: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """CUDA takes the beginning of a UUID for the whole."""
    if not name.startswith(("GPU-", "MIG-")):
        return []
    return [gpu for gpu in gpus if gpu.uuid == name] or [gpu for gpu in gpus if gpu.uuid.startswith(name)]


def _broken(what: str) -> UserError:
    return UserError(
        f"nvidia-smi {what}. Repair the NVIDIA driver, as a rule by restarting the machine; to build without GPUs, set "
        "CUDA_VISIBLE_DEVICES= (empty)"
    )
