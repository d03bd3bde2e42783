"""Evaluate a model: its best checkpoint on all views of every clip of val, and where it errs."""

import contextlib
import logging
import os
import shutil
from pathlib import Path

from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import write_json
from ..files.kept import drop_cached, is_due, keep, publish_again
from ..job import Job
from ..records import TestResult
from ..report.error_analysis import ClipScores, write_error_analysis
from ..tracking.live import recording
from ..tracking.stages import recorded_stage
from ..weights.identity import record_beside
from ..zoo import build_model
from .adopt import adopt_evaluation

_log = logging.getLogger(__name__)


def evaluate(job: Job) -> str:
    """Evaluate the run's best checkpoint on val; returns the last line to print.

    Started by torchrun, every process calls this, and all but the first return an empty line. Raises UserError and
    engine's CheckpointError.
    """
    files = job.files
    if not files.best.is_file():
        raise UserError(f"{files.best} is not there; `dvc repro train@{job.model}` makes it")
    beside = record_beside(files.best)
    checkpoint_md5 = md5_of(files.best)
    fingerprint = job.evaluation_fingerprint(checkpoint_md5)
    kept, is_first = files.unfinished_evaluations / fingerprint[:16], os.environ.get("RANK", "0") == "0"
    if is_first:
        for note in job.notes_on(beside.provenance) if beside else ():
            _log.warning(note)
        drop_cached(files.unfinished, job.root)
    if is_due(kept, job.root):
        return _publish_again(job, kept) if is_first else ""
    if (adopted := adopt_evaluation(job, checkpoint_md5, is_first=is_first)) is not None:
        if is_first:
            write_json(files.metrics("evaluate"), adopted.metrics.table())
            _analyse(job, adopted)
        return f"evaluate: adopted from the version before; {adopted.summary()}" if is_first else ""

    from ..engine.checkpoint import load_checkpoint, load_trained
    from ..engine.distributed import joined
    from .evaluated_clips import evaluated_clips
    from .measure import Request, Subject, measure

    request = Request(
        clips=evaluated_clips(job, "val"),
        scratch=job.evaluation_scratch(checkpoint_md5, "val"),
        average_clips=job.recipe.test.average_clips,
        views=files.views,
    )
    checkpoint, classes = load_checkpoint(files.best), job.manifest.classes
    network = build_model(job.recipe.model, len(classes))
    load_trained(network, checkpoint, files.best)
    subject = Subject(
        network=network,
        classes=classes,
        checkpoint_md5=checkpoint_md5,
        fingerprint=fingerprint,
        epoch=checkpoint["meta"]["epoch"],
    )
    checkpoints = job.runtime.checkpoints
    recorded = recorded_stage(files, "evaluate", checkpoint_md5, checkpoints) if is_first else contextlib.nullcontext()
    with recorded:
        with joined(job.device_type) as world:
            outcome = measure(job, subject, request, world)
        if outcome is None:
            return ""
        outcome.write(files.result)
        result = outcome.result
        write_json(files.metrics("evaluate"), result.metrics.table())
        analysis = _analyse(job, result)
    keep(kept, files.base, [files.result, files.views, files.metrics("evaluate"), *analysis])
    shutil.rmtree(outcome.scratch)
    return f"evaluate: {result.summary()}; scores in {files.result}"


def _publish_again(job: Job, kept: Path) -> str:
    """Publish an evaluation that was killed after its end, before DVC had its files; returns the last line to print."""
    publish_again(kept, job.files.base)
    with recording(job.files, checkpoints=job.runtime.checkpoints):
        pass
    summary = TestResult.read(job.files.result).summary()
    return f"evaluate: it had finished, and its files were published again; {summary}"


def _analyse(job: Job, result: TestResult) -> list[Path]:
    """Write the error analysis of the views that were saved; returns its files."""
    from ..engine.views import average, read_views
    from .view_scores import by_number_of_views

    views, average_clips = read_views(job.files.views), job.recipe.test.average_clips
    scores = average(views, average_clips)
    shares = scores if average_clips == "prob" else scores.softmax(dim=1)
    by_views = by_number_of_views(views, average_clips)
    clip_scores = ClipScores(views.video_ids, views.labels.numpy(), shares.double().numpy(), views.classes, by_views)
    return write_error_analysis(clip_scores, job.manifest, job.data, job.files, fingerprint=result.fingerprint)
