"""A run's folder as a training leaves it, around a network that was never trained."""

from collections.abc import Sequence

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
