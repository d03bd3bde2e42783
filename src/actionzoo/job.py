"""A job: one recipe to be run, with everything that running it takes."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from .devices import device_type
from .engine.schedule import scaled_lr
from .errors import UserError
from .files.data_folder import DataFolder
from .files.hashes import sha256_of
from .kinetics.manifest import Manifest, read_manifest
from .kinetics.published_list import fetch_list
from .params import Params, digest, workspace_of
from .params.settings import PublishedLists, Runtime
from .recipe import Published, Recipe, Split, as_dict
from .records import RunRecord
from .run_files import RunFiles
from .weights.download import CACHE
from .weights.initial import InitialWeights, initial_weights
from .weights.provenance import Provenance


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clips of an optimizer step, and the learning rate that goes with them."""

    size: int
    """Clips of one step, over all processes."""
    reference: int
    """Clips of the batch that the recipe's learning rate was made for."""
    lr: float
    """Learning rate after warm-up, for `size`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Made once, where a stage or a command begins. Nothing behind it reads params.yaml or the manifest again."""

    model: str
    dataset: str
    recipe: Recipe
    """As it runs: the data set's overrides applied."""
    written: Recipe
    """As params.yaml has it: its batch is the reference of the learning rate."""
    overrides: tuple[str, ...]
    """What the data set changes: `schedule.epochs: 256 -> 10`."""
    runtime: Runtime
    files: RunFiles
    data_set: DataFolder
    """The data set's files."""
    init: InitialWeights | None
    """What a training starts from; None: random weights."""
    published: Published | None
    published_lists: Mapping[Split, PublishedLists]

    @classmethod
    def of(cls, params: Params, model: str, root: Path | None = None, work_dir: Path | None = None) -> "Job":
        """The job that params.yaml describes. `work_dir` takes all files of the run. Raises UserError."""
        return cls(
            model=model,
            dataset=params.name,
            recipe=params.recipe(model),
            written=params.recipes[model],
            overrides=tuple(params.overrides(model)),
            runtime=params.runtime,
            files=RunFiles(
                root or params.root, params.name, model, work_dir, workspace=workspace_of(root or params.root)
            ),
            data_set=params.data_folder(root),
            init=initial_weights(params, model),
            published=params.published_of(model),
            published_lists=params.dataset.published_lists,
        )

    @property
    def root(self) -> Path:
        return self.files.root

    @property
    def downloads(self) -> Path:
        """The folder of downloaded weights, which experiments share."""
        return workspace_of(self.root) / CACHE

    def notes_on(self, provenance: Provenance, remedy: str = "") -> list[str]:
        """A line for each difference of the model's training to what is there now that DVC does not see."""
        source, file = (self.init.source, self.init.file_here(self.downloads)) if self.init else (None, None)
        return provenance.notes(self.model, source, file, remedy)

    @property
    def data(self) -> Path:
        """The folder of the shards that the recipe reads, such as <data root>/demo/videos_256."""
        return self._form.stored

    @property
    def _form(self) -> DataFolder:
        return self.data_set / f"{self.recipe.clips.form}_{self.recipe.clips.short_side}"

    @property
    def has_manifest(self) -> bool:
        return self._form.manifest.is_file()

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The clips, read once. Raises UserError."""
        path = self._form.manifest
        if not self.has_manifest:
            stage = "resize" if self.recipe.clips.form == "videos" else "frames"
            raise UserError(f"{path} is not there; `dvc repro {stage}@{self.recipe.clips.short_side}` makes it")
        return read_manifest(path)

    @property
    def device_type(self) -> Literal["cuda", "cpu"]:
        return device_type(self.runtime)

    def list_files(self, split: Split) -> list[Path]:
        """The published list of a split, and its label map; empty if params.yaml gives none.

        A URL is fetched, once. Raises UserError.
        """
        given = self.published_lists.get(split)
        addresses = [address for address in (given.list, given.label_map) if address] if given else []
        return [fetch_list(address, self.data_set.stored / "lists", self.root) for address in addresses]

    def list_hashes(self, split: Split) -> list[str]:
        """sha256 of each of `list_files`."""
        return [sha256_of(path) for path in self.list_files(split)]

    def batch(self, num_processes: int = 1) -> Batch:
        """What a step of `num_processes` processes has; lr is scaled linearly if the recipe says so."""
        optim, reference = self.recipe.optim, self.written.optim.reference_batch
        size = optim.videos_per_gpu * optim.accumulate * num_processes
        lr = scaled_lr(optim.lr, batch=size, reference_batch=reference) if optim.scale_lr else optim.lr
        return Batch(size, reference, lr)

    def training_fingerprint(self) -> str:
        """Equal for trainings that dvc.yaml takes for the same: what shapes them counts, and not how they run.

        As for DVC, values as written count beside those that the data set puts in their place. So the reference batch
        counts, which is that of the recipe as written.
        """
        sections = ("seed", "model", "init", "clips", "augment", "optim", "schedule")
        return digest("train", *self._values(*sections), self.manifest.sha256)

    def resume_key(self, num_processes: int = 1, manifest_sha256: str | None = None) -> str:
        """Equal for trainings that can go on from each other's saved states: the recipe as used, the clips, the batch,
        and the number of processes, each of which has gone through its part of the epoch.

        Version 0.1 used it as the fingerprint of a training, without the settings of batch norm in the recipe; with the
        same formula its unfinished trainings go on.
        """
        recipe, batch, optim = self.recipe, self.batch(num_processes), as_dict(self.recipe.optim)
        batch_norm = optim.pop("batch_norm")
        sections = (recipe.seed, recipe.model, recipe.init, recipe.clips, recipe.augment, optim, recipe.schedule)
        scaled = (batch.size, batch.reference, batch.lr)
        return digest(*sections, scaled, num_processes, batch_norm, manifest_sha256 or self.manifest.sha256)

    def is_training_of(self, record: RunRecord, manifest_sha256: str | None = None) -> bool:
        """Whether the record is of this training, by any number of processes.

        `manifest_sha256` is that of a record of version 0.1, if its manifest was written in another way.
        """
        if record.fingerprint == self.training_fingerprint():
            return True
        # a record of version 0.1: to be deleted with the next version
        size = self.batch().size
        return record.batch % size == 0 and record.fingerprint == self.resume_key(record.batch // size, manifest_sha256)

    def evaluation_fingerprint(self, checkpoint_md5: str, split: Split = "val") -> str:
        """Equal for evaluations that dvc.yaml takes for the same; values count as in `training_fingerprint`."""
        values = self._values("model", "clips", "augment", "test")
        return digest("evaluate", _EVALUATION, *values, self.manifest.sha256, checkpoint_md5, *self.list_hashes(split))

    def old_evaluation_fingerprint(
        self, checkpoint_md5: str, split: Split = "val", manifest_sha256: str | None = None
    ) -> str:
        """As version 0.1 computed it, of the values as used. To be deleted with the next version."""
        recipe, manifest = self.recipe, manifest_sha256 or self.manifest.sha256
        sections = (recipe.model, recipe.clips, recipe.augment, recipe.test)
        return digest(_EVALUATION, *sections, manifest, checkpoint_md5, *self.list_hashes(split))

    def _values(self, *sections: str) -> list[object]:
        """Sections of the recipe as written, and of the recipe as used."""
        return [getattr(recipe, section) for recipe in (self.written, self.recipe) for section in sections]

    def evaluation_scratch(self, checkpoint_md5: str, split: Split) -> Path:
        """Folder of an interrupted evaluation; evaluations whose view logits have the same bits share it.

        .scratch/evaluate/<dataset>/<model>/<fingerprint>
        """
        recipe, runtime = self.recipe, self.runtime
        views = (recipe.test.num_clips, recipe.test.num_crops, recipe.test.crop_size)
        how = (runtime.precision, runtime.max_views, runtime.channels_last, self.device_type)
        clips = (self.manifest.sha256, *self.list_hashes(split))
        fingerprint = digest(
            _EVALUATION, recipe.model, recipe.clips, recipe.augment, *views, *how, *clips, checkpoint_md5, split
        )
        return self.files.unfinished_evaluations / fingerprint[:16]


_EVALUATION = 3
"""Version of what an evaluation computes. Another one makes all evaluations run again."""
