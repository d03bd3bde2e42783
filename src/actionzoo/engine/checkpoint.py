"""Checkpoint files: written whole or not at all; loaded only if they hold nothing but tensors and plain values."""

import collections
import contextlib
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ..errors import MACHINE_ERRNOS, MachineFault, UserError, speaks_of_machine
from ..files.atomic import atomic_write


class CheckpointError(UserError):
    """A file is damaged or holds more than tensors and plain values; names the file and the remedy."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all. Equal content gives equal bytes, whatever the file's name."""
    with atomic_write(path) as file:
        torch.save(content, file)


def trained_weights(model: nn.Module, epoch: int, top1: float) -> dict[str, Any]:
    """Return the content of a published checkpoint: weights, epoch and validation top-1 (0 to 1).

    It holds no clock time and no run id, so that equal trainings give equal files.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"meta": {"epoch": epoch, "val_top1": top1}, "state_dict": weights}


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load a checkpoint or a saved state, after comparing the checksum of every part of the file.

    Raises CheckpointError, and FileNotFoundError if there is no file.
    """
    content = read_torch_file(path, "delete it and run again", device)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, no checkpoint of this program; delete it and run again"
        )
    return content


def load_trained(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of `checkpoint` into `model`. Errors name the file `path`.

    Raises CheckpointError if the weights are missing, belong to another network, or are NaN or infinite.
    """
    again = "train the model again, or restore the file (`dvc checkout`)"
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} has no weights under state_dict; {again}")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = (str(error) or type(error).__name__).splitlines()
        raise CheckpointError(
            f"{path} does not fit this recipe's network: {' '.join(line.strip() for line in lines[:2])}; {again}"
        ) from None
    if not_finite := names_not_finite(model.state_dict()):
        raise CheckpointError(f"{path} has weights that are NaN or infinite: {not_finite[0]}; {again}")


def names_not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def read_torch_file(path: Path, remedy: str, device: torch.device | str = "cpu") -> Any:
    """Load what torch.save wrote, if it holds only tensors and plain values; no code of the file is run.

    The checksum of each part is compared, which torch itself does not do, so that any changed byte is found. Errors end
    with `remedy`. Raises CheckpointError, MachineFault if memory or disk fail, and FileNotFoundError.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint; name the file in it")
    check_parts(path, remedy)
    if any(len(name) > _MAX_GLOBAL_NAME for name in _referenced_names(path)):
        raise CheckpointError(
            f"{path} was not loaded: it asks to run something with a name of more than {_MAX_GLOBAL_NAME} letters. "
            "Take it from a source you know"
        )
    try:
        with path.open("rb") as file:  # not the path: torch chooses another format by the ending of a name
            return torch.load(file, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} was not loaded: it asks to run {asked[1]}. Take it from a source you know"
            ) from None
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is damaged; it was not loaded. {_capital(remedy)}"
        ) from None
    except OSError as error:
        if error.errno in MACHINE_ERRNOS:
            raise
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None
    except Exception as error:  # damaged bytes can raise anything in torch's reader
        if isinstance(error, RuntimeError) and speaks_of_machine(str(error)):
            raise MachineFault(f"{path} could not be read: {_first_line(error)}; free memory and run again") from None
        raise CheckpointError(f"{path} is damaged, or no checkpoint ({_first_line(error)}); {remedy}") from None


def check_parts(path: Path, remedy: str) -> None:
    """Compare the checksum of each part of a file that torch.save wrote. Older files, which are no zip, have none.

    Raises CheckpointError, whose text ends with `remedy`, and FileNotFoundError.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as parts:
            for part in parts.infolist():
                if part.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(
                        f"{path} is compressed, which torch never does, at {part.filename!r}; {remedy}"
                    )
                if part.CRC == 0 and part.file_size:  # torch can be told to write no checksums
                    continue
                with parts.open(part) as content:
                    while content.read(1 << 20):
                        pass
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None
    except OSError as error:  # such as a part that lies before the beginning of the file
        if error.errno in MACHINE_ERRNOS:
            raise
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None
    except (NotImplementedError, RuntimeError, ValueError, EOFError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None


_MAX_GLOBAL_NAME = 300
"""Letters. torch takes minutes to compose its error about a longer name."""

_MAX_PICKLES = 5
"""Pickles at the beginning of a file that is no zip: number, version, system, tensors, names of storages."""


def _referenced_names(path: Path) -> Iterator[str]:
    """Yield the names of the functions and classes that the file's pickles refer to, up to the first damage."""
    texts: collections.deque[str] = collections.deque(maxlen=2)
    with contextlib.suppress(*_UNREADABLE), _pickles(path) as file:
        for _ in range(_MAX_PICKLES):
            for opcode, argument, _ in pickletools.genops(file):
                match opcode.name:
                    case "GLOBAL" | "INST":
                        yield str(argument)
                    case "STACK_GLOBAL":  # module and name are the last two texts
                        yield ".".join(texts)
                    case name if "UNICODE" in name or "STRING" in name:
                        texts.append(str(argument))


_UNREADABLE = (
    *(OSError, ValueError, LookupError, EOFError, OverflowError, MemoryError, RuntimeError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Open the file where its pickles begin."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            names = [name for name in parts.namelist() if name.endswith("data.pkl")]
            with parts.open(names[0]) as file:  # IndexError if there is none, which torch reports
                yield file
    else:
        with path.open("rb") as file:
            yield file


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if the text is empty."""
    return (str(error) or type(error).__name__).splitlines()[0]
