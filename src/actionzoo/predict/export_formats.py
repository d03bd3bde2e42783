"""What a trained network is exported as, and what each format asks of the file's name. Needs no network."""

import importlib.util
from pathlib import Path
from typing import Literal

from ..errors import UserError

Format = Literal["torchscript", "torch.export", "onnx"]
FORMATS: tuple[Format, ...] = ("torchscript", "torch.export", "onnx")

_ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")  # torch needs the last, and says so less plainly


def check_target(to: Format, out: Path) -> None:
    """Raises UserError if no file of that format can be written there."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of the file to write")
    if to == "torch.export" and out.suffix != ".pt2":
        raise UserError(f"{out}: torch.export reads files back that end in .pt2 alone; call it {out.stem}.pt2")
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
