"""The clips of a split that an evaluation measures: those of its published list, or all usable ones."""

import dataclasses
from collections.abc import Sequence

from ..clips.loader import usable_clips
from ..job import Job
from ..kinetics.manifest import StoredClip, list_sha256
from ..kinetics.published_list import Chosen, choose, read_published
from ..recipe import Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedClips:
    """What an evaluation measures of a split, and what it cannot."""

    split: Split
    clips: Sequence[StoredClip]
    """The usable ones, in the manifest's order."""
    listed: int
    """Clips of the list, usable or not."""
    missing: int
    """Listed, and not usable."""
    list_sha256: str
    """Accuracies are comparable only if these are equal."""
    published: Chosen | None
    """How the data set differs from the published list; None without one."""


def evaluated_clips(job: Job, split: Split) -> EvaluatedClips:
    """Exactly the clips of the published list if params.yaml names one for the split, else all usable clips.

    Raises UserError if none is usable, or if the list cannot be fetched or read.
    """
    in_split = job.manifest.of_split(split)
    if files := job.list_files(split):
        chosen = choose(read_published(*files), in_split, job.manifest.classes)
        return EvaluatedClips(
            split=split,
            clips=[clip.stored() for clip in chosen.clips],
            listed=chosen.listed,
            missing=len(chosen.missing),
            list_sha256=chosen.list_sha256,
            published=chosen,
        )
    clips, listed = usable_clips(in_split, split, job.manifest.path), [clip for clip in in_split if clip.is_listed]
    return EvaluatedClips(
        split=split,
        clips=clips,
        listed=len(listed),
        missing=len(listed) - len(clips),
        list_sha256=list_sha256(listed, split),
        published=None,
    )
