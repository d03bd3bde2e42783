"""Measure a network on a split: all views of every clip, averaged into scores, compared with the labels.

Evaluate, evaluate_checkpoint and reproduce are this with different networks. View logits of finished clips lie in the
request's scratch folder: killed at any moment, a measurement goes on with the other clips.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..clips.inputs import ToInput
from ..clips.loader import Loading, view_loader
from ..devices import device_of, layout_of, place
from ..engine.distributed import World
from ..engine.evaluate import Inference, view_logits
from ..engine.finished import FinishedClips
from ..engine.metrics import accuracies, check_scores
from ..engine.views import ViewLogits, ViewsHeader, average, read_views, write_views
from ..errors import UserError
from ..files.json_files import read_json, write_json
from ..job import Job
from ..kinetics.labels import map_labels
from ..process.progress import progress
from ..process.stage import sigterm_as_exit
from ..records import Fp32Comparison, Metrics, PublishedListRecord, TestResult
from .evaluated_clips import EvaluatedClips
from .fp32_comparison import compare_with_fp32, comparison_text

COMPARED = 8
"""The first so many clips are computed in fp32 too, where runtime.precision is another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The network that is measured, and where it comes from."""

    network: nn.Module
    """(N, 3, T, H, W) -> (N, len(classes)) logits."""
    classes: Sequence[str]
    """By output."""
    checkpoint_md5: str
    label_mapping: Sequence[int] | None = None
    """Label of the data set -> output of the network; None if they have the same numbers."""
    fingerprint: str = ""
    """Job.evaluation_fingerprint, where finished work is to be found again."""
    file: str | None = None
    """Base name of the checkpoint, where it is not the run's best.pth."""
    sha256: str | None = None
    settings: tuple[str, ...] | None = None
    """What the checkpoint's own recipe changed: `clips.clip_len: 32 -> 64`."""
    epoch: int | None = None
    """Of the run's best.pth."""

    def about(self, job: Job) -> dict[str, object]:
        """What the file of view logits says of its network."""
        known = {
            "model": job.model,
            "dataset": job.dataset,
            "fingerprint": self.fingerprint or None,
            "checkpoint_md5": self.checkpoint_md5,
            "file": self.file,
            "sha256": self.sha256,
            "settings": self.settings,
        }
        return {key: value for key, value in known.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be measured."""

    clips: EvaluatedClips
    scratch: Path
    """Folder of the finished clips' view logits: Job.evaluation_scratch."""
    average_clips: Literal["prob", "score", "none"]
    """none leaves the views as they are; then there are no accuracies."""
    topk: Sequence[int] = (1, 5)
    views: Path | None = None
    """The file that gets the logits of every view; None: they stay in the scratch folder."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a measurement gives, in the process that writes it down."""

    result: TestResult
    views: ViewLogits
    scores: Tensor | None
    """(N, num_classes), averaged over the views; None if average_clips is none."""
    scratch: Path
    """To be deleted once everything is written."""

    def write(self, path: Path) -> None:
        """result.json, with the scores of every clip."""
        scores = self.views.logits if self.scores is None else self.scores
        ids, labels = self.views.video_ids, self.views.labels.tolist()
        clips = ((ids[number], labels[number], scores[number].tolist()) for number in range(len(ids)))
        self.result.write_with_clips(path, clips)


def measure(job: Job, subject: Subject, request: Request, world: World) -> Outcome | None:
    """Run all views of the request's clips through the network, by all processes of `world`.

    The test settings are those of the job's recipe. Returns None in all processes but the first. Raises UserError.
    """
    clips = request.clips.clips
    if request.clips.published and world.is_first:
        print(request.clips.published.text(), flush=True)
    finished = FinishedClips(request.scratch, world.rank)
    try:
        undecodable = _run_views(job, subject.network, request, finished, world)
    finally:
        finished.close()
    undecodable = sorted(sentence for gathered in world.gather(undecodable) for sentence in gathered)
    if not world.is_first:
        return None

    logits, fp32_logits = finished.read()
    measured = [clip for clip in clips if clip.video_id in logits]
    if not measured:
        raise UserError("no clip decoded: " + "; ".join(undecodable[:3]))
    if len(measured) + len(undecodable) != len(clips):
        raise UserError(
            f"{request.scratch} has {len(measured)} of {len(clips) - len(undecodable)} finished clips: the other "
            "processes do not see this folder; several machines need a shared one"
        )
    metrics = _counts(job, request.clips, len(measured), len(undecodable))
    test, mapping = job.recipe.test, subject.label_mapping
    path = request.views or request.scratch / "views.safetensors"
    header = ViewsHeader(
        video_ids=[clip.video_id for clip in measured],
        labels=[clip.label if clip.label < 0 or mapping is None else mapping[clip.label] for clip in measured],
        num_clips=test.num_clips,
        num_crops=test.num_crops,
        classes=subject.classes,
        about=subject.about(job) | {"split": request.clips.split} | metrics.counts(),
    )
    write_views(path, header, (logits[clip.video_id].read() for clip in measured))
    views, scores, found = read_views(path), None, dict[str, float]()
    if request.average_clips != "none":
        scores = average(views, request.average_clips)
        if any(clip.label >= 0 for clip in measured):
            found = accuracies(scores, views.labels, views.video_ids, request.topk)
    metrics = dataclasses.replace(metrics, accuracies=found, epoch=subject.epoch)
    compared = [clip.video_id for clip in clips[:COMPARED] if clip.video_id in fp32_logits]
    comparison = None
    if compared:
        pairs = [(logits[video_id].read(), fp32_logits[video_id].read()) for video_id in compared]
        comparison = compare_with_fp32(pairs, test.average_clips)
        print(comparison_text(comparison, job.runtime.precision), flush=True)
    return Outcome(_result(job, subject, request, metrics, undecodable, comparison), views, scores, request.scratch)


def find_label_mapping(
    file: Path, classes: Sequence[str], known: Sequence[str], num_outputs: int, *, is_quiet: bool = False
) -> list[int] | None:
    """Label of the data set -> output of the network; None if they have the same numbers.

    `classes` are the data set's, `known` the network's, if its file names them. Raises UserError where they do not go
    together.
    """
    if known:
        try:
            return map_labels(classes, known)
        except UserError as error:
            raise UserError(f"{file} cannot be evaluated on this data set: {error}") from None
    if num_outputs != len(classes):
        raise UserError(
            f"{file} has {num_outputs} classes and does not name them, and the data set has {len(classes)}; evaluate "
            "it on the data set that it was trained on"
        )
    if not is_quiet:
        print(
            f"warning: {file} does not name its classes; they are taken to be the data set's, in its order", flush=True
        )
    return None


def _counts(job: Job, clips: EvaluatedClips, num_measured: int, num_undecodable: int) -> Metrics:
    """The metrics without the accuracies: what they are accuracies of."""
    published = clips.published
    return Metrics(
        accuracies={},
        clips=num_measured,
        missing=clips.missing,
        undecodable=num_undecodable,
        listed=clips.listed,
        protocol=job.recipe.test.protocol,
        precision=job.runtime.precision,
        list_sha256=clips.list_sha256,
        published_list_sha256=published.sha256 if published else None,
        other_frames=len(published.other_frames) if published else None,
        other_label=len(published.other_label) if published else None,
    )


def _result(
    job: Job,
    subject: Subject,
    request: Request,
    metrics: Metrics,
    undecodable: list[str],
    comparison: Fp32Comparison | None,
) -> TestResult:
    published_list = None
    if chosen := request.clips.published:
        published_list = PublishedListRecord(
            sha256=chosen.sha256,
            label_map_sha256=chosen.label_map_sha256,
            missing=chosen.missing,
            other_frames=chosen.other_frames,
            other_label=chosen.other_label,
        )
    return TestResult(
        model=job.model,
        dataset=job.dataset,
        fingerprint=subject.fingerprint,
        checkpoint_md5=subject.checkpoint_md5,
        file=subject.file,
        sha256=subject.sha256,
        settings=subject.settings,
        split=request.clips.split,
        protocol=job.recipe.test.protocol,
        average_clips=request.average_clips,
        precision=job.runtime.precision,
        published_list=published_list,
        fp32_comparison=comparison,
        metrics=metrics,
        undecodable=tuple(undecodable),
        classes=tuple(subject.classes),
    )


def _run_views(job: Job, network: nn.Module, request: Request, finished: FinishedClips, world: World) -> list[str]:
    """Compute this process's share of the view logits that are not saved yet.

    Returns a sentence for each of its clips that did not decode.
    """
    recipe, runtime, device = job.recipe, job.runtime, device_of(job.runtime, world.local_rank)
    spec, clips, scratch = recipe.test_spec, request.clips.clips, request.scratch
    group_size = max(1, runtime.max_views // (spec.num_clips * spec.num_crops))
    groups = [clips[start : start + group_size] for start in range(0, len(clips), group_size)]
    done: set[str] = set()
    if world.is_first:
        done = finished.begin()
        _share_quarantine(scratch, world.size)
    done = set(world.gather(sorted(done))[0])
    left = [number for number, group in enumerate(groups) if any(clip.video_id not in done for clip in group)]
    mine = left[world.rank :: world.size]
    loading = Loading(
        batch_size=group_size,
        workers=runtime.num_workers,
        timeout_seconds=runtime.clip_timeout_seconds,
        device=device,
        quarantine=_quarantine(scratch, world.rank),
    )
    loader = view_loader(job.data, clips, spec, loading=loading, groups=mine)

    def say(text: str) -> None:
        print(text, flush=True)

    if world.is_first:
        views = f"{len(clips)} clips, {recipe.test.protocol} views of {spec.crop_size} pixels"
        say(f"{job.model}: {views}, {world.size} x {device.type}, {runtime.precision}; {loader.text()}")
        if done:
            say(f"resuming an interrupted evaluation: {len(done)} of {len(clips)} clips are finished")
    to_input = ToInput(mean=spec.mean, std=spec.std, device=device, layout=layout_of(runtime))
    is_compared = {clip.video_id for clip in clips[:COMPARED]} if runtime.precision != "fp32" else set[str]()
    results = view_logits(
        place(network, runtime, device),
        loader,
        Inference(to_input, runtime.max_views, runtime.precision),
        is_compared=is_compared.__contains__,
        on_text=say,
    )
    undecodable: list[str] = []
    comparison_is_due = world.is_first
    total, done_here = sum(len(groups[number]) for number in mine), 0
    with sigterm_as_exit(), progress("clips") as on_progress:
        try:
            for number, batch in zip(mine, results, strict=True):
                if batch.video_ids:
                    check_scores(batch.logits, None, batch.video_ids)
                if batch.fp32_logits is not None and comparison_is_due:
                    comparison_is_due = False
                    pairs = list(zip(batch.logits, batch.fp32_logits, strict=True))
                    say(comparison_text(compare_with_fp32(pairs, spec.average_clips), runtime.precision))
                finished.add(number, batch)
                undecodable += batch.undecodable
                done_here += len(batch.video_ids) + len(batch.undecodable)
                if world.is_first:
                    on_progress("evaluate", done_here, total)
            finished.end()
        finally:
            finished.save()
            loader.close()
    return undecodable


def _quarantine(scratch: Path, rank: int) -> Path:
    return scratch / f"quarantine-{rank}.json"


def _share_quarantine(scratch: Path, num_processes: int) -> None:
    """Give all processes what hung one of them: shares of the clips change from start to start."""
    known: dict[str, Any] = {}
    for path in sorted(scratch.glob("quarantine-*.json")):
        known |= read_json(path)
    if known:
        for rank in range(num_processes):
            write_json(_quarantine(scratch, rank), known)
