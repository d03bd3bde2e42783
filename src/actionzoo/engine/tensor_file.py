"""Tensors in a safetensors file, written piece by piece and read by memory mapping, never whole in memory.

    8 bytes      length of the header, little-endian
    header       JSON: name -> dtype, shape, [begin, end) of its data in bytes; __metadata__: name -> text
    data         one tensor after the other, row-major

Any safetensors reader reads these files. Equal content gives equal bytes.
"""

import ctypes
import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

import torch
from torch import Tensor

from ..errors import UserError
from ..files.atomic import atomic_write


class DamagedFile(UserError):
    """A file is not a whole safetensors file; names the file and the remedy."""


@dataclass(frozen=True)
class Pieces:
    """A tensor to be written, in pieces that are concatenated along its first axis."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: torch.dtype
    tensors: Iterable[Tensor]


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor lies in its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, Pieces], metadata: Mapping[str, str]) -> None:
    """Write the file whole or not at all. Give tensors of wider types first, so that all are aligned."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, pieces in tensors.items():
        size = math.prod(pieces.shape) * pieces.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[pieces.dtype],
            "shape": list(pieces.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, pieces in tensors.items():
            written = 0
            for tensor in pieces.tensors:
                assert tensor.dtype == pieces.dtype and tensor.shape[1:] == pieces.shape[1:], (name, tensor.shape)
                _write(file, tensor)
                written += len(tensor)
            assert written == pieces.shape[0], (name, written, pieces.shape)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, and the metadata.

    Memory-mapped copy-on-write: pages load on access; writes to a tensor never reach the file. Raises DamagedFile, and
    FileNotFoundError if there is no file.
    """
    locations, metadata = read_header(path)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = {}
    for name, location in locations.items():
        if location.size_bytes:
            count = math.prod(location.shape)
            flat = torch.frombuffer(mapped, dtype=location.dtype, count=count, offset=location.offset)
            tensors[name] = flat.view(location.shape)
        else:
            tensors[name] = _empty(path, name, location)
    return tensors, metadata


def _empty(path: Path, name: str, location: TensorLocation) -> Tensor:
    try:
        return torch.empty(location.shape, dtype=location.dtype)
    except (RuntimeError, OverflowError, ValueError):
        raise DamagedFile(
            f"{path} is no whole safetensors file ({name!r} has shape {location.shape}); delete it and make it anew"
        ) from None


def read_header(path: Path) -> tuple[dict[str, TensorLocation], dict[str, str]]:
    """Return where each tensor lies, by name, and the metadata.

    Raises DamagedFile, and FileNotFoundError if there is no file.
    """
    if path.is_dir():
        raise DamagedFile(f"{path} is a folder, not a safetensors file; name the file in it")
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"it ends within its header, at byte {size}")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no object")
            metadata = header.pop("__metadata__", {})
            if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("its metadata are not all texts")
            locations = {name: _location(name, entry, 8 + length) for name, entry in header.items()}
            _check_locations(locations, 8 + length, size)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DamagedFile(f"{path} is no whole safetensors file ({error}); delete it and make it anew") from None
        except (RecursionError, OverflowError, MemoryError):
            raise DamagedFile(f"{path} is no whole safetensors file; delete it and make it anew") from None
    return locations, metadata


MAX_HEADER_BYTES = 512 * 2**20
"""Bound of a header, which lists the ids of all clips."""


def _location(name: str, entry: object, start: int) -> TensorLocation:
    """Read an entry of the header; the data begin at byte `start` of the file. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"{name!r} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name!r} is of type {dtype!r:.50}, not one of {', '.join(_DTYPES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has shape {shape!r:.50} and data_offsets {offsets!r:.50}")
    location = TensorLocation(tuple(shape), _DTYPES[dtype], start + offsets[0])
    if location.size_bytes != offsets[1] - offsets[0]:
        raise ValueError(f"{name!r} has shape {shape!r:.50}, which is not what its data_offsets {offsets!r:.50} hold")
    if location.offset % location.dtype.itemsize:
        raise ValueError(f"{name!r} begins at byte {location.offset}, which is not aligned")
    return location


def _are_counts(values: object) -> TypeGuard[list[int]]:
    """Whether `values` is a list of whole numbers from 0 on, as many and as large as a tensor can have."""
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 2**62 for value in values)
        and math.prod(value for value in values if value) < 2**125
    )


def _check_locations(locations: Mapping[str, TensorLocation], start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the file from byte `start` to its end, one after the other."""
    end = start
    for location in sorted(locations.values(), key=lambda location: (location.offset, location.size_bytes)):
        if location.offset != end:
            raise ValueError(f"a tensor begins at byte {location.offset}, the one before it ends at {end}")
        end += location.size_bytes
    if end != size:
        raise ValueError(f"it has {size} bytes, its header speaks of {end}")


_NAMES = {torch.float32: "F32", torch.int64: "I64"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def _write(file: BinaryIO, tensor: Tensor) -> None:
    """Write the tensor's memory without a copy and without numpy. For little-endian machines."""
    tensor = tensor.contiguous()
    if size := tensor.numel() * tensor.element_size():
        file.write((ctypes.c_char * size).from_address(tensor.data_ptr()))
