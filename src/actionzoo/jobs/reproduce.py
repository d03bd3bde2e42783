"""Reproduce: published weights, evaluated on the clips at hand; measured beside published, with a verdict.

weights/<file>                                   as fetched, its hash checked
released/results/<dataset>/<model>/<kind>.json   scores of every clip; kind is ckpt or infer_ckpt. Beside it,
                                                 <kind>.views.safetensors
released/metrics/<dataset>/<model>.json          records.Reproduction
released/report/<dataset>/released.*             the table of all models, as .md, .html and .json
"""

import dataclasses
import shutil
from pathlib import Path

from ..accuracy import judge
from ..errors import UserError
from ..files.hashes import md5_of
from ..job import Job
from ..params import Params, digest
from ..process.progress import progress
from ..records import ReproducedFile, Reproduction, TestResult
from ..tracking.live import recorded_run
from ..tracking.names import TEST_STEP, to_metrics
from ..weights.checkpoints import open_checkpoint
from ..weights.published import PublishedFile, fetch_published, published_files
from .adopt import old_manifest, old_manifest_sha256


def reproduce(params: Params, model: str, root: Path | None = None) -> str:
    """Evaluate what was published for `model` on all views of val; returns the last line to print.

    A file that was evaluated by the same protocol on the same clips is not evaluated again. Raises UserError.
    """
    root = root or params.root
    job, files = Job.of(params, model, root), published_files(params, model)
    record = Reproduction(files={kind: _reproduce_file(params, job, file) for kind, file in files.items()})
    path = root / "released" / "metrics" / job.dataset / f"{model}.json"
    record.write(path)
    if not files:
        (root / "released" / "results" / job.dataset / model).mkdir(parents=True, exist_ok=True)  # an out of the stage
        return f"released: nothing was published for {model} ({path})"
    verdicts = []
    for kind, file in record.files.items():
        low, high = (100 * bound for bound in file.metrics.interval())
        top1 = 100 * file.metrics.accuracies["top1"]
        verdicts.append(
            f"{kind} top-1 {top1:.2f} ({low:.2f}-{high:.2f}), published {file.published_top1}: {file.verdict}"
        )
    return f"released: {model}: {'; '.join(verdicts)} ({path})"


def _reproduce_file(params: Params, job: Job, published: PublishedFile) -> ReproducedFile:
    with progress("bytes") as on_progress:
        file = fetch_published(published, job.downloads, on_progress=on_progress)
    checkpoint_md5 = md5_of(file)
    job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, model=published.model))
    path = job.root / "released" / "results" / job.dataset / job.model / f"{published.kind}.json"
    fingerprint, result = job.evaluation_fingerprint(checkpoint_md5), TestResult.read_if_there(path)
    if result is None or result.fingerprint not in (fingerprint, *_fingerprints_of_before(job, checkpoint_md5)):
        result = _measure(params, job, published, file, fingerprint, path)
    if result.metrics.top1 is None:
        raise UserError(f"the clips of val have no labels in {job.manifest.path}, so no accuracy can be reproduced")
    verdict, why = judge(job.dataset, job.overrides, result.metrics, published.top1)
    return ReproducedFile(
        metrics=result.metrics,
        published_top1=published.top1,
        published_top5=published.top5,
        verdict=verdict,
        why=why,
        file=result.file or file.name,
        sha256=result.sha256 or "",
    )


def _measure(
    params: Params, job: Job, published: PublishedFile, file: Path, fingerprint: str, path: Path
) -> TestResult:
    from ..engine.distributed import World
    from .evaluated_clips import evaluated_clips
    from .measure import Request, Subject, find_label_mapping, measure

    opened = open_checkpoint(file, params=params, model=job.model, root=job.root)
    print(opened.report.text(), flush=True)
    known, classes, checkpoint_md5 = opened.identity.classes, job.manifest.classes, md5_of(file)
    subject = Subject(
        network=opened.network,
        classes=known or classes,
        checkpoint_md5=checkpoint_md5,
        label_mapping=find_label_mapping(file, classes, known, opened.num_classes),
        fingerprint=fingerprint,
        file=file.name,
        sha256=opened.report.sha256,
    )
    request = Request(
        clips=evaluated_clips(job, "val"),
        scratch=job.evaluation_scratch(checkpoint_md5, "val"),
        average_clips=job.recipe.test.average_clips,
        views=path.with_name(f"{published.kind}.views.safetensors"),
    )
    outcome = measure(job, subject, request, World())
    assert outcome is not None  # there is one process
    outcome.write(path)
    shutil.rmtree(outcome.scratch)
    _record(job, published, outcome.result, path)
    return outcome.result


def _fingerprints_of_before(job: Job, checkpoint_md5: str) -> tuple[str, str]:
    """As older versions had it, the first of the manifest's text: what they evaluated need not be evaluated again."""
    recipe, text = job.recipe, old_manifest(job).decode()
    sections = (recipe.model, recipe.clips, recipe.augment, recipe.test)
    of_text = digest(3, *sections, text, checkpoint_md5, *job.list_hashes("val"))
    return of_text, job.old_evaluation_fingerprint(checkpoint_md5, manifest_sha256=old_manifest_sha256(job))


def _record(job: Job, published: PublishedFile, result: TestResult, path: Path) -> None:
    """In an experiment of its own: nothing was trained."""
    with recorded_run(
        experiment=f"{job.dataset}-released",
        name=f"{job.model} {published.kind}",
        phase="evaluate",
        params={
            "model": job.model,
            "kind": published.kind,
            "file": result.file,
            "sha256": result.sha256,
            "test": result.protocol,
        },
        tags={"recipe": job.model, "dataset": job.dataset, "checkpoint.md5": result.checkpoint_md5},
    ) as record:
        record.log(TEST_STEP, to_metrics(result.metrics.counts() | {"mode": "test"}))
        record.artifact(path)
