"""A run's folder as a training leaves it, around a network that was never trained."""

import json
from collections.abc import Sequence

from actionzoo.engine.checkpoint import save_checkpoint, trained_weights
from actionzoo.files.hashes import md5_of
from actionzoo.job import RunFiles
from actionzoo.params import Params, as_dict


def write_run(params: Params, files: RunFiles, network, classes: Sequence[str], val_top1: float = 0.5) -> None:
    """best.pth of epoch 3, and the recipe.json that vouches for it."""
    save_checkpoint(files.best, trained_weights(network, 3, val_top1))
    made = {
        "row": files.row,
        "dataset": files.dataset,
        "recipe": {key: value for key, value in as_dict(params.recipe(files.row)).items() if key != "published"},
        "overrides": [],
        "classes": list(classes),
        "manifest_sha256": "ab" * 32,
        "files": {"best.pth": {"md5": md5_of(files.best)}},
    }
    files.recipe.write_text(json.dumps(made))
