"""A finished run as two files for others: the weights of its best epoch, and what they are and were made of.

    runs/<dataset>/<row>/best.pth      ->  <row>-<sha256[:8]>.pth           for torch
    runs/<dataset>/<row>/recipe.json       <row>-<sha256[:8]>.safetensors   the same, metadata as texts
    runs/<dataset>/<row>/result.json

Each name carries the hash of its own file's bytes. No clock time in them: published again, a run gives the same files.
"""

import hashlib
import io
import json
import logging
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
from ..params import workspace_of
from ..records import Metrics, RunRecord, TestResult
from ..run_files import RunFiles
from ..tracking.registry import register
from .download import CACHE, weights_here
from .identity import record_beside
from .provenance import Provenance, init_source, versions

_log = logging.getLogger(__name__)


def publish_run(run: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write both files into `out`, or into the run's folder if None; returns the .pth and the .safetensors.

    Raises UserError if the run is not finished or not evaluated, or its files are not of one training.
    """
    record, files = _finished_run(run)
    if not files.best.is_file():
        raise UserError(f"{files.best} is not there; `dvc repro train@{files.model}` makes it")
    record_beside(files.best)
    source = init_source(record.recipe)
    file = weights_here(source, workspace_of(files.root) / CACHE) if source else None
    for note in Provenance.of(record).notes(record.model, source, file):
        _log.warning(note)
    checkpoint = load_checkpoint(files.best)
    epoch = checkpoint["meta"]["epoch"]
    meta = {
        "row": record.model,  # a key of weights files, which every version reads
        "dataset": record.dataset,
        "recipe": record.recipe,
        "overrides": list(record.overrides),
        "classes": list(record.classes),
        "manifest_sha256": record.manifest_sha256,
        "epoch": epoch,
        "val_top1": checkpoint["meta"]["val_top1"],
        "metrics": _metrics(files, epoch).as_json(),
        "versions": record.versions or versions(),
    }
    # copies: a view would bring all of its storage along
    state = {name: tensor.clone().contiguous() for name, tensor in checkpoint["state_dict"].items()}

    content = io.BytesIO()
    torch.save({"meta": meta, "state_dict": state}, content)
    folder = out or run
    pth = _write(folder, files.model, "pth", content.getvalue())
    return pth, _write(folder, files.model, "safetensors", _safetensors(state, meta))


def register_run(run: Path, name: str | None = None, alias: str | None = None) -> str:
    """Publish the run into MLflow's registry, as a version of the registered model `name`; returns its address.

    Without `name` it is called like the model. The .safetensors file is registered: it holds no code, and loading it
    runs none. Raises UserError.
    """
    record, files = _finished_run(run)
    # beside the run, so that MLflow's copy of the file is a hard link
    with tempfile.TemporaryDirectory(dir=run, prefix=".registered-") as folder:
        pth, file = publish_run(run, Path(folder))
        top1 = TestResult.read(files.result).metrics.top1
        tags = {"model": record.model, "dataset": record.dataset, "file": file.name, "test.top1": top1}
        pth.unlink()
        return register(run, file, name=name or record.model, alias=alias, tags=tags)


def _finished_run(run: Path) -> tuple[RunRecord, RunFiles]:
    """The run's record, and where its files lie. Raises UserError if it is no whole record of that run."""
    path = run / "recipe.json"
    if not path.is_file():
        raise UserError(f"{path} is not there; a training writes it at its end; give a folder runs/<dataset>/<model>")
    record = RunRecord.read(path)
    if "best.pth" not in record.files:
        raise UserError(f"{path} does not vouch for best.pth; train the model again")
    if len(run.resolve().parents) < 3:
        raise UserError(f"{run} is not a run's folder; give a folder runs/<dataset>/<model>")
    files = RunFiles(run.resolve().parents[2], record.dataset, record.model)
    if files.run != run.resolve():
        raise UserError(
            f"{path} is of {record.model} on {record.dataset}, whose folder is {files.run}; publish that one"
        )
    return record, files


def _metrics(files: RunFiles, epoch: int) -> Metrics:
    """Those of the evaluation of this very checkpoint. Raises UserError."""
    again = f"`dvc repro evaluate@{files.model}` makes it"
    if not files.result.is_file():
        raise UserError(f"{files.result} is not there; {again}")
    result = TestResult.read(files.result)
    epoch_there = result.metrics.epoch
    if (epoch_there is not None and epoch_there != epoch) or result.checkpoint_md5 != md5_of(files.best):
        raise UserError(f"{files.result} is of another checkpoint than {files.best}; {again} anew")
    return result.metrics


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
