"""The types of params.yaml's sections, but for the recipes: data sets, their preparation, and how runs are executed."""

import dataclasses
import os
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..recipe import STRICT, Count, Positive, PositiveFloat, Share, Split

Overrides = dict[str, dict[str, dict[str, Any]]]
"""Family or model -> section of a recipe -> key -> the value that replaces the recipe's."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Synthetic:
    """Size of the made-up mirror: clips per class and split, parts per split."""

    train_clips: Positive
    val_clips: Positive
    test_clips: Positive
    parts: Positive
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PublishedLists:
    """The clips of a split that published accuracies were measured on."""

    list: Annotated[str, Field(min_length=1)]
    """Path or URL of lines `video_id num_frames label`."""
    label_map: Annotated[str, Field(min_length=1)] | None = None
    """Path or URL of the class names of its labels; None: its labels are the data set's own."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Dataset:
    source: str
    """URL or folder of a mirror in the public layout; `synthetic:` makes one; `folder:///a/path` or `folder:a/path` is
    a folder of videos. The environment variable ACTIONZOO_SOURCE replaces it."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    parts: str = "all"
    """`all`, or part numbers such as `0-9` or `0,3,5-7`."""
    max_bad_share: Share = 0.1
    """Share of the listed clips that may be missing or corrupt before a data stage fails."""
    synthetic: Synthetic | None = None
    demo_recipes: tuple[str, ...] = ()
    """Models that `actionzoo demo` builds."""
    published_lists: dict[Split, PublishedLists] = dataclasses.field(default_factory=dict)
    """Evaluation of a split that is named here uses exactly the clips of this list."""
    overrides_of: str | None = None
    """Another data set, whose overrides apply before this one's."""
    overrides: Overrides = dataclasses.field(default_factory=dict)
    """What replaces values of recipes; an entry for a model comes after the one for its family."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Encode:
    """How short-side videos are encoded (H.264)."""

    crf: Annotated[int, Field(ge=0, le=51)]
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]
    gop: Positive
    """Frames from one keyframe to the next, at most."""
    bframes: Count
    tune: Literal["fastdecode", "film", "none"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Jpeg:
    qscale: Annotated[int, Field(ge=2, le=31)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prepare:
    encode: Encode
    jpeg: Jpeg
    min_frames: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Runtime:
    device: Literal["auto", "cpu", "cuda"]
    workers: Count | Literal["auto"]
    jobs: Positive | Literal["auto"]
    gpus: Positive
    """Used on each machine by train and evaluate: one process each, started by torchrun. Without GPUs: processes."""
    nodes: Positive
    """Machines that share a training."""
    rendezvous: str | None
    """host:port of the first machine, where there are several."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    max_views: Positive
    """Views that pass through the network at once; evaluation halves it when memory runs out."""
    save_minutes: PositiveFloat
    """Longest time between two saved states of a training."""
    keep_states: Positive
    grace_seconds: PositiveFloat = 25.0
    """From SIGTERM to SIGKILL when a flow stops a stage; flows/grace.py reads it."""
    share_minutes: Annotated[float, Field(ge=0)]
    """Longest time between two states of a training in DVC's remote, on machines that share one; 0: none there."""
    deterministic: bool
    clip_timeout_seconds: PositiveFloat
    checkpoints: Literal["link", "upload", "reference"] = "link"
    """How they come into MLflow: tracking.record.Checkpoints."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers prepare the data, tcp://10.0.0.1:8786; None: this machine alone."""

    @property
    def scheduler_address(self) -> str | None:
        """The environment variable DASK_SCHEDULER_ADDRESS if it is set, even to nothing; else `scheduler`."""
        return os.environ.get("DASK_SCHEDULER_ADDRESS", self.scheduler) or None

    @property
    def num_jobs(self) -> int:
        return _cpu_count() if self.jobs == "auto" else self.jobs

    @property
    def num_processes(self) -> int:
        return self.gpus * self.nodes

    @property
    def num_workers(self) -> int:
        """Decoding processes of one training or evaluation process."""
        return max(1, min(_cpu_count() // self.gpus, 8)) if self.workers == "auto" else self.workers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    name: str
    root: Annotated[str, Field(min_length=1)] = "data"
    """Folder of archives and shards; relative to the workspace (Params.workspace) unless it is absolute. The
    environment variable ACTIONZOO_DATA replaces it."""


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
