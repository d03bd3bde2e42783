"""Checkpoint files: whole or not at all, and never more than tensors and plain values."""

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
    """A file that is damaged or holds more than tensors and plain values; names the file and the next step."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write beside, then rename. Equal content gives equal bytes, whatever the file is called."""
    with atomic_write(path) as file:
        torch.save(content, file)


def trained_weights(model: nn.Module, epoch: int, top1: float) -> dict[str, Any]:
    """What a finished checkpoint holds. No clock, no run id: equal trainings give equal files."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"meta": {"epoch": epoch, "val_top1": top1}, "state_dict": weights}


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint or saved state, whole: every part of the file has the checksum that was written with it.

    Raises CheckpointError; FileNotFoundError if there is none.
    """
    content = read_torch_file(path, "delete it and run again", device)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, no checkpoint of this program; delete it and run again"
        )
    return content


def load_trained(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Put the weights of a checkpoint that `path` names into the network that it is of. Raises CheckpointError."""
    again = "train the row again, or restore the file (`dvc checkout`)"
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} has no weights under state_dict; {again}")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = (str(error) or type(error).__name__).splitlines()
        raise CheckpointError(
            f"{path} is not of this recipe's network: {' '.join(line.strip() for line in lines[:2])}; {again}"
        ) from None
    if not_finite := names_not_finite(model.state_dict()):
        raise CheckpointError(f"{path} has weights that are no numbers (NaN or infinite): {not_finite[0]}; {again}")


def names_not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def read_torch_file(path: Path, remedy: str, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote, tensors and plain values alone; no code of the file is run.

    torch itself compares no checksums; here each part's is compared, so that a changed byte is found. `remedy` ends
    the error. Raises CheckpointError; FileNotFoundError.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint; name the file in it")
    check_parts(path, remedy)
    if any(len(name) > _MAX_GLOBAL_NAME for name in _asked_for(path)):
        raise CheckpointError(
            f"{path} was not loaded: it asks to run something with a name of more than {_MAX_GLOBAL_NAME} letters. "
            "Take it from a source you know"
        )
    try:
        with path.open("rb") as file:  # a file and not its name, by whose ending torch would choose another format
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
    except Exception as error:  # what damaged bytes make of a reader is not for us to foresee
        if isinstance(error, RuntimeError) and speaks_of_machine(str(error)):
            raise MachineFault(f"{path} could not be read: {_first_line(error)}; free memory and run again") from None
        raise CheckpointError(f"{path} is damaged, or no checkpoint ({_first_line(error)}); {remedy}") from None


def check_parts(path: Path, remedy: str) -> None:
    """Compare the checksum of each part of a file that torch.save wrote. Files that are no zip have none.

    Raises CheckpointError; FileNotFoundError.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as parts:
            for part in parts.infolist():
                if part.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path} is packed as torch packs nothing, at {part.filename!r}; {remedy}")
                if part.CRC == 0 and part.file_size:  # torch can be told to write none
                    continue
                with parts.open(part) as content:
                    while content.read(1 << 20):
                        pass
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None
    except OSError as error:  # a part that lies before the file's beginning, say
        if error.errno in MACHINE_ERRNOS:
            raise
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None
    except (NotImplementedError, RuntimeError, ValueError, EOFError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None


_MAX_GLOBAL_NAME = 300
"""Letters. torch's error about a longer one takes it minutes to compose."""

_MAX_PICKLES = 5
"""At the beginning of a file that is no zip: number, version, system, tensors' names, storages' names."""


def _asked_for(path: Path) -> Iterator[str]:
    """The names of functions and classes that the file's pickles ask for, as far as these can be followed."""
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
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            names = [name for name in parts.namelist() if name.endswith("data.pkl")]
            with parts.open(names[0]) as file:  # IndexError where there is none, which torch will tell
                yield file
    else:
        with path.open("rb") as file:
            yield file


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first_line(error: Exception) -> str:
    """Some errors say nothing, others a page."""
    return (str(error) or type(error).__name__).splitlines()[0]
