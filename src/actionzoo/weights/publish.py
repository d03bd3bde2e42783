"""A finished run as two files for others: the weights of its best epoch, and what they are and were made of.

    runs/<dataset>/<row>/best.pth      ->  <row>-<sha256[:8]>.pth           for torch
    runs/<dataset>/<row>/recipe.json       <row>-<sha256[:8]>.safetensors   the same, metadata as texts
    metrics/<dataset>/<row>.json

Each name carries the hash of its own file's bytes. No clock time in them: published again, a run gives the same files.
"""

import hashlib
import importlib.metadata
import io
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.checkpoint import load_checkpoint
from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.hashes import md5_of
from ..files.json_files import require_json
from ..job import RunFiles
from ..jobs.evaluate import read_head
from ..tracking.registry import register
from .identity import record_beside


def publish_run(run: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write both files into `out`, or into the run's folder if None; gives the .pth and the .safetensors.

    Raises UserError if the run is not finished or not tested, or its files are not of one training.
    """
    made, files = _finished_run(run)
    if not files.best.is_file():
        raise UserError(f"{files.best} is not there; `dvc repro train@{files.model}` makes it")
    record_beside(files.best)
    checkpoint = load_checkpoint(files.best)
    meta = {key: made[key] for key in ("row", "dataset", "recipe", "overrides", "classes", "manifest_sha256")} | {
        "epoch": checkpoint["meta"]["epoch"],
        "val_top1": checkpoint["meta"]["val_top1"],
        "metrics": _metrics(files, checkpoint["meta"]["epoch"]),
        "versions": {"actionzoo": importlib.metadata.version("actionzoo"), "torch": str(torch.__version__)},
    }
    # copies: a view would bring all of its storage along
    state = {name: tensor.clone().contiguous() for name, tensor in checkpoint["state_dict"].items()}

    content = io.BytesIO()
    torch.save({"meta": meta, "state_dict": state}, content)
    folder = out or run
    pth = _write(folder, files.model, "pth", content.getvalue())
    return pth, _write(folder, files.model, "safetensors", _safetensors(state, meta))


def register_run(run: Path, name: str | None = None, alias: str | None = None) -> str:
    """Publish the run into MLflow's registry, as a version of the model `name`, the row's if None; gives its address.

    What is registered is the .safetensors file: no code is in it, and none is run to load it. Raises UserError.
    """
    made, files = _finished_run(run)
    # beside the run, so that MLflow's copy of the file is a hard link
    with tempfile.TemporaryDirectory(dir=run, prefix=".registered-") as folder:
        pth, file = publish_run(run, Path(folder))
        metrics = require_json(files.metrics(), f"`dvc repro evaluate@{files.model}` makes it")
        tags = {"row": made["row"], "dataset": made["dataset"], "file": file.name, "test.top1": metrics.get("top1")}
        pth.unlink()
        return register(run, file, name=name or made["row"], alias=alias, tags=tags)


_KEYS = {"row": str, "dataset": str, "recipe": dict, "overrides": list, "classes": list, "manifest_sha256": str}


def _finished_run(run: Path) -> tuple[dict[str, Any], RunFiles]:
    """The run's recipe.json, and where its files lie. Raises UserError if it is no whole record of that run."""
    remedy = "it is written when a training ends; give a folder runs/<dataset>/<row>"
    path = run / "recipe.json"
    made = require_json(path, remedy)
    faults = [key for key, kind in _KEYS.items() if not isinstance(made.get(key), kind)]
    known = made.get("files")
    if not isinstance(known, dict) or "best.pth" not in known:
        faults.append("files")
    if faults:
        raise UserError(f"{path} is no whole record of a training: it lacks {', '.join(faults)}; {remedy}")
    if len(run.resolve().parents) < 3:
        raise UserError(f"{run} is no run's folder; give a folder runs/<dataset>/<row>")
    files = RunFiles(run.resolve().parents[2], made["dataset"], made["row"])
    if files.run != run.resolve():
        raise UserError(
            f"{path} is of {made['row']} on {made['dataset']}, whose folder is {files.run}; publish that one"
        )
    return made, files


def _metrics(files: RunFiles, epoch: int) -> dict[str, Any]:
    """Of the test of this very checkpoint."""
    again = f"`dvc repro evaluate@{files.model}` makes it"
    metrics = require_json(files.metrics(), again)
    tested = None
    if files.result.is_file():
        tested = (read_head(files.result) or require_json(files.result, again)).get("checkpoint_md5")
    if metrics.get("epoch", epoch) != epoch or tested not in (None, md5_of(files.best)):
        raise UserError(f"{files.metrics()} is of another checkpoint than {files.best}; {again} anew")
    return metrics


def _safetensors(state: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    data = save(state, {"format": "pt"} | texts)
    # The package writes metadata in an order that changes from call to call. Sorted they take the same room.
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _write(folder: Path, row: str, suffix: str, content: bytes) -> Path:
    path = folder / f"{row}-{hashlib.sha256(content).hexdigest()[:8]}.{suffix}"
    with atomic_write(path) as file:
        file.write(content)
    return path
