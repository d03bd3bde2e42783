"""Reproduce: published weights, evaluated on the clips at hand; measured beside published, with a verdict.

weights/<file>                                        as fetched, its hash checked
reproduction/results/<dataset>/<model>/               reproduction.json: records.Reproduction; for each published file
                                                      (ckpt, infer_ckpt) <kind>.json, the scores of every clip, and
                                                      <kind>.views.safetensors
reproduction/metrics/<dataset>/<model>/               a small table for `dvc metrics`
reproduction/report/<dataset>/reproduction.*          the table of all models, as .md, .html and .json
"""

import dataclasses
import shutil
from pathlib import Path

from ..accuracy import judge
from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import write_json
from ..files.kept import drop_cached, is_due, keep, publish_again
from ..files.links import link_or_copy
from ..job import Job
from ..params import Params, digest
from ..process.progress import progress
from ..records import ReproducedFile, Reproduction, TestResult
from ..run_files import ReproductionFiles
from ..tracking.live import recording
from ..weights.checkpoints import open_checkpoint
from ..weights.published import PublishedFile, fetch_published, published_files
from .adopt import old_manifest, old_manifest_sha256


def reproduce(params: Params, model: str, root: Path | None = None) -> str:
    """Evaluate what was published for `model` on all views of val; returns the last line to print. Raises UserError."""
    root = root or params.root
    job, published = Job.of(params, model, root), published_files(params, model)
    files = ReproductionFiles(root, job.dataset, model)
    for other in params.recipes:  # `dvc metrics` says "failed to load" of a folder that is absent
        dataclasses.replace(files, model=other).metrics.parent.mkdir(parents=True, exist_ok=True)
    drop_cached(job.files.unfinished_reproductions, files.project)
    record = Reproduction(files={kind: _reproduce_file(params, job, files, file) for kind, file in published.items()})
    record.write(files.record)
    write_json(files.metrics, record.table())
    with recording(files):
        pass
    if not published:
        return f"reproduce: nothing was published for {model} ({files.record})"
    verdicts = []
    for kind, file in record.files.items():
        low, high = (100 * bound for bound in file.metrics.interval())
        top1 = 100 * file.metrics.accuracies["top1"]
        verdicts.append(
            f"{kind} top-1 {top1:.2f} ({low:.2f}-{high:.2f}), published {file.published_top1}: {file.verdict}"
        )
    return f"reproduce: {model}: {'; '.join(verdicts)} ({files.record})"


def _reproduce_file(params: Params, job: Job, files: ReproductionFiles, published: PublishedFile) -> ReproducedFile:
    with progress("bytes") as on_progress:
        file = fetch_published(published, job.downloads, on_progress=on_progress)
    checkpoint_md5 = md5_of(file)
    job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, model=published.model))
    fingerprint, path = job.evaluation_fingerprint(checkpoint_md5), files.result(published.kind)
    kept = job.files.unfinished_reproductions / fingerprint[:16]
    if is_due(kept, files.project):
        publish_again(kept, files.project)
        result = TestResult.read(path)
    else:
        result = _adopted(job, files, published, checkpoint_md5) or _measure(
            params, job, published, file, fingerprint, path
        )
        keep(kept, files.project, [path, files.views(published.kind)])
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
    return outcome.result


def _adopted(job: Job, files: ReproductionFiles, published: PublishedFile, checkpoint_md5: str) -> TestResult | None:
    """The evaluation that the version before left in released/, put in its place; None if there is none.

    To be deleted with the next version.
    """
    path = job.root / "released" / "results" / job.dataset / job.model / f"{published.kind}.json"
    views = path.with_name(f"{published.kind}.views.safetensors")
    try:
        result = TestResult.read_if_there(path)
    except UserError:
        return None
    if result is None or not views.is_file():
        return None
    recipe, text = job.recipe, old_manifest(job).decode()
    sections = (recipe.model, recipe.clips, recipe.augment, recipe.test)
    known = (
        digest(3, *sections, text, checkpoint_md5, *job.list_hashes("val")),
        job.old_evaluation_fingerprint(checkpoint_md5, manifest_sha256=old_manifest_sha256(job)),
    )
    if result.fingerprint not in known:
        return None
    for old, new in ((path, files.result(published.kind)), (views, files.views(published.kind))):
        new.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(old, new)
    return result
