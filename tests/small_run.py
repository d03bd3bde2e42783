"""A run's folder as a training and an evaluation leave it, around a network that was never trained."""

import json
from collections.abc import Mapping, Sequence

from actionzoo.engine.checkpoint import save_checkpoint, trained_weights
from actionzoo.files.hashes import md5_of
from actionzoo.params import Params
from actionzoo.recipe import as_dict
from actionzoo.records import FileRecord, RunRecord
from actionzoo.run_files import RunFiles


def write_run(params: Params, files: RunFiles, network, classes: Sequence[str], val_top1: float = 0.5) -> None:
    """best.pth of epoch 3, and the recipe.json that vouches for it."""
    save_checkpoint(files.best, trained_weights(network, 3, val_top1))
    RunRecord(
        model=files.model,
        dataset=files.dataset,
        recipe=as_dict(params.recipe(files.model)),
        classes=tuple(classes),
        manifest_sha256="ab" * 32,
        files={"best.pth": FileRecord(md5=md5_of(files.best), size=files.best.stat().st_size)},
    ).write(files.recipe)


def write_result(files: RunFiles, metrics: Mapping[str, object], checkpoint_md5: str = "0" * 32) -> None:
    """result.json of an evaluation with these metrics, whose clips are left out; nothing is checked."""
    made = {
        "format_version": 2,
        "model": files.model,
        "dataset": files.dataset,
        "checkpoint_md5": checkpoint_md5,
        "split": "val",
        "protocol": str(metrics.get("protocol", "unknown")) if isinstance(metrics, dict) else "unknown",
        "average_clips": "prob",
        "metrics": metrics,
    }
    files.result.parent.mkdir(parents=True, exist_ok=True)
    files.result.write_text(f'{json.dumps(made)[:-1]}, "clips": {{\n}}}}\n')
