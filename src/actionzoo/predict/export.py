"""Exports a trained network to a file that runs without this package, checked against the network before it is kept.

    torchscript    torch.jit.load(file)                      also from C++
    torch.export   torch.export.load(file).module()          for torch's compilers
    onnx           onnxruntime.InferenceSession(file)        also in other runtimes that read ONNX

Every file contains a JSON text that describes its input and output: `description`.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files.atomic import sync_folder
from ..weights.checkpoints import TrainedModel
from .export_formats import Format, check_target

Run = Callable[[Tensor], Tensor]
"""Clips -> logits, by a file that was read back."""

METADATA = "actionzoo.json"
"""Name of the text in the file: an extra file for torch, an entry of the metadata for ONNX."""

LARGEST_ERROR = 1e-4
"""Largest allowed difference of a logit from the network's, divided by the logits' standard deviation. Another order of
summation makes a hundredth of it; a layer that the runtime computes differently makes much more."""


def export_model(trained: TrainedModel, to: Format, out: Path, *, batch: int | None = None) -> str:
    """Write the network in eval mode, for crops of test_spec.crop_size; returns a line on the file and its accuracy.

    `batch` is the number of clips per call, any number if None. The file is read back and compared with the network on
    random clips. Raises UserError, and leaves no file, if their logits differ by more than LARGEST_ERROR.
    """
    check_target(to, out)
    network, spec = trained.network.cpu(), trained.test_spec
    sizes = [batch] if batch else [1, 2]
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(size, 3, spec.clip_len, spec.crop_size, spec.crop_size, generator=generator) for size in sizes]
    about = json.dumps(description(trained, batch), ensure_ascii=False)
    # the unfinished file already has its name: torch.export checks the ending
    folder = out.parent / f".{out.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        made = folder / out.name
        with torch.no_grad(), _quiet():
            run = _WRITERS[to](network, clips[-1], made, about, batch is None)
            error = max(_distance(run(some), network(some)) for some in clips)
        if not error <= LARGEST_ERROR:
            raise UserError(
                f"{to} gives other logits than the network: {error:.1e} of their standard deviation away, where "
                f"{LARGEST_ERROR:g} is allowed. Nothing was written; try another format, or another version of it"
            )
        os.replace(made, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shape = " x ".join(map(str, description(trained, batch)["input"]["shape"]))
    tried = " and ".join(map(str, sizes))
    return (
        f"export: {trained.model_name} as {to} in {out}, {out.stat().st_size / 1e6:.0f} MB, input {shape}; read back, "
        f"its logits are off by {error:.1e} of their deviation at most, {LARGEST_ERROR:g} allowed (batches of {tried})"
    )


def description(trained: TrainedModel, batch: int | None) -> dict[str, Any]:
    """What a user of the file has to know, as JSON: input and output, classes, test spec, source of the weights."""
    spec = trained.test_spec
    size = spec.crop_size
    return {
        "model": trained.model_name,
        "row": trained.model_name,  # as version 0.1 called it
        "input": {
            "name": "clips",
            "dtype": "float32",
            "shape": [batch or "batch", 3, spec.clip_len, size, size],
            "axes": "clip, colour (R, G, B), frame, height, width",
            "pixels": "(level - mean) / std, levels from 0 to 255",
        },
        "mean": spec.mean,
        "std": spec.std,
        "clip_len": spec.clip_len,
        "frame_interval": spec.frame_interval,
        "resize": spec.resize,
        "crop_size": size,
        "num_clips": spec.num_clips,
        "num_crops": spec.num_crops,
        "average_clips": spec.average_clips,
        "output": {"name": "logits", "dtype": "float32", "shape": [batch or "batch", len(trained.classes)]},
        "classes": trained.classes,
        "weights": {"file": trained.file.name, "sha256": trained.sha256},
        "versions": {"actionzoo": importlib.metadata.version("actionzoo"), "torch": str(torch.__version__)},
    }


def _torchscript(network: nn.Module, clips: Tensor, out: Path, about: str, is_dynamic: bool) -> Run:
    jit: Any = torch.jit  # has no types
    jit.save(jit.trace(network, clips, check_trace=False), out, _extra_files={METADATA: about})
    module: nn.Module = jit.load(out)
    return module


def _exported(network: nn.Module, clips: Tensor, is_dynamic: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},) if is_dynamic else None
    program = torch.export.export(network, (clips,), dynamic_shapes=shapes)
    program.example_inputs = None  # else they would be in the file, 50 MB at full size
    return program


def _torch_export(network: nn.Module, clips: Tensor, out: Path, about: str, is_dynamic: bool) -> Run:
    torch.export.save(_exported(network, clips, is_dynamic), out, extra_files={METADATA: about})
    return torch.export.load(out).module()


def _onnx(network: nn.Module, clips: Tensor, out: Path, about: str, is_dynamic: bool) -> Run:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it, with a less plain message
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed; pip install 'actionzoo[export]' brings what ONNX needs"
        ) from None
    program = torch.onnx.export(
        _exported(network, clips, is_dynamic), input_names=["clips"], output_names=["logits"], verbose=False
    )
    assert program is not None  # it is None only with torch's older exporter
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA: about})
    onnx.save(model, out)
    onnx.checker.check_model(out)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


_WRITERS = {"torchscript": _torchscript, "torch.export": _torch_export, "onnx": _onnx}


def _distance(found: Tensor, exact: Tensor) -> float:
    scale = exact.std(correction=0).item() or exact.abs().max().item() or 1.0
    return ((found - exact).abs().max() / scale).item()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's notes on older exporters and on torchvision."""
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        chatter.setLevel(level)
