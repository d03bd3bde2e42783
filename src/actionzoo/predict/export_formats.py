"""The formats of an export, and checks of the file to write. Imports nothing of the networks."""

import importlib.util
from pathlib import Path
from typing import Literal, get_args

from ..errors import UserError

Format = Literal["torchscript", "torch.export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)

_ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")  # torch needs the last, and says so less plainly


def check_target(to: Format, out: Path) -> None:
    """Raises UserError if a file of that format cannot be written at `out`."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of the file to write")
    if to == "torch.export" and out.suffix != ".pt2":
        raise UserError(f"{out}: torch.export reads back only files that end in .pt2; call it {out.stem}.pt2")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"{out} cannot be written: {parent} is a file, not a folder")
    if to == "onnx":
        check_onnx()


def check_onnx() -> None:
    """Raises UserError if a package that ONNX needs is not installed."""
    for name in _ONNX_NEEDS:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; pip install 'actionzoo[export]' brings what ONNX needs")
