"""The description at the top of a run's page: what was trained, how it compares, where its files are, how to use it."""

from ..accuracy import KINETICS400, PUBLISHED_CLIPS, Comparison
from ..files.markdown import escaped
from ..recipe import Published
from ..records import Benchmark, RunRecord, TestResult
from .titles import display_name, pretraining

_PAPERS = {
    "slowfast": ("SlowFast Networks for Video Recognition", "https://arxiv.org/abs/1812.03982"),
    "csn": ("Video Classification with Channel-Separated Convolutional Networks", "https://arxiv.org/abs/1904.02811"),
}
"""Family -> title and address of its paper."""


def story(
    model: str,
    dataset: str,
    record: RunRecord | None,
    result: TestResult | None,
    comparison: Comparison,
    published: Published | None,
    benchmark: Benchmark | None = None,
    error: str = "",
) -> str:
    """Markdown. Equal facts give equal text. Eight parameters: each is one paragraph, and any may be absent."""
    parts = [f"**{escaped(display_name(model, record))}** — `{model}` on `{dataset}`"]
    if error:
        parts.append(f"**Not finished:** {escaped(error)}")
    if warning := _warning(dataset, comparison, result):
        parts.append(f"> **Not comparable with the published accuracy:** {warning}.")
    if result and result.metrics.top1 is not None:
        parts.append(_accuracy(result, comparison))
    if published:
        parts.append(_published(published))
    if record:
        parts.append(_training(record))
        if record.overrides:
            lines = "\n".join(f"- `{line}`" for line in record.overrides)
            parts.append(f"The data set changes the recipe:\n\n{lines}")
    if benchmark and benchmark.videos_per_second is not None:
        busy = " The machine was busy: the speed may be far off." if benchmark.is_disturbed else ""
        parts.append(f"Speed: {benchmark.videos_per_second:.2f} videos/s on {escaped(benchmark.device)}.{busy}")
    parts.append(_use(model, dataset, record))
    return "\n\n".join(parts) + "\n"


def experiment_story(dataset: str) -> str:
    """The description of an experiment."""
    if dataset.endswith("-reproduction"):
        of = escaped(dataset.removesuffix("-reproduction"))
        return f"Published weights, evaluated on {of}; nothing was trained. `dvc --cd reproduction repro` adds runs.\n"
    what = (
        "Kinetics-400, the data set of the published accuracies."
        if dataset == KINETICS400
        else f"`{dataset}`. It is not Kinetics-400: no accuracy here compares with a published one."
    )
    return (
        f"The models of the zoo, trained on {what}\n\n"
        "One run is one training with its evaluation and benchmark. Filter by tags: `tags.family = 'csn'`, "
        "`tags.comparable = 'true'`; by accuracy: `metrics.\"test/top1\" > 0.7`. To compare models, select their runs "
        "and choose Compare.\n\n"
        "The runs are a copy of the folders `runs/`; `actionzoo sync` brings them up to date.\n"
    )


def _warning(dataset: str, comparison: Comparison, result: TestResult | None) -> str:
    sentences = {
        "data": f"measured on {escaped(dataset)}, not on Kinetics-400",
        "recipe": "the recipe was changed, see below",
        "part": f"fewer clips than the {PUBLISHED_CLIPS:,} of the published accuracy",
    }
    if result and result.metrics.clips and "part" in comparison.reasons:
        sentences["part"] = f"{result.metrics.clips:,} clips instead of {PUBLISHED_CLIPS:,}"
    return "; ".join(sentences[reason] for reason in comparison.reasons)


def _accuracy(result: TestResult, comparison: Comparison) -> str:
    metrics = result.metrics
    assert metrics.top1 is not None
    low, high = (100 * bound for bound in metrics.interval())
    text = f"Top-1 {100 * metrics.top1:.2f} % (95 %: {low:.2f} to {high:.2f}) over {metrics.clips:,} clips"
    if metrics.top5 is not None:
        text += f", top-5 {100 * metrics.top5:.2f} %"
    text += f", views {result.protocol}"
    if comparison.gap_points is not None:
        text += f"; {comparison.gap_points:+.2f} points from the published accuracy"
    return f"{text}."


def _published(published: Published) -> str:
    cells = {
        "top-1 %": "/".join(map(str, published.top1)),
        "top-5 %": "/".join(map(str, published.top5)),
        "backbone": published.backbone,
        "pretrain": published.pretrained,
        "GPUs": published.gpus,
        "GPU memory MB": "" if published.gpu_mem_mb is None else str(published.gpu_mem_mb),
        "inference": published.inference,
    }
    links = {"ckpt": published.ckpt, "infer_ckpt": published.infer_ckpt, "log": published.log, "json": published.json}
    files = ", ".join(f"[{name}](<{address}>)" for name, address in links.items() if address)
    head, line = " | ".join(cells), " | ".join(escaped(cell) or "-" for cell in cells.values())
    table = f"| {head} |\n|{'---|' * len(cells)}\n| {line} |"
    note = f"\n\n{escaped(published.note.en)}" if published.note.en else ""
    return f"Published:\n\n{table}\n\n{files}{note}" if files else f"Published:\n\n{table}{note}"


def _training(record: RunRecord) -> str:
    network = record.recipe.get("model")
    family = network.get("family") if isinstance(network, dict) else None
    sentences = []
    if paper := _PAPERS.get(str(family)):
        sentences.append(f"Paper: [{paper[0]}]({paper[1]}).")
    start = pretraining(record)
    weights = "random weights" if start == "none" else f"weights of {escaped(start)}"
    sentences.append(
        f"Trained {record.epochs} epochs from {weights}, {record.batch} clips a step, learning rate {record.lr:g}."
    )
    if how := record.circumstances:
        device = escaped(how.device_name) or ("GPUs" if how.device == "cuda" else "CPU")
        sentences.append(f"{how.processes} x {device}, {how.precision}.")
    if record.best_epoch:
        sentences.append(f"Best validation at epoch {record.best_epoch}.")
    return " ".join(sentences)


def _use(model: str, dataset: str, record: RunRecord | None) -> str:
    checkpoint = record.files.get("best.pth") if record else None
    md5 = f", md5 `{checkpoint.md5}`" if checkpoint else ""
    return (
        f"Weights: `runs/{dataset}/{model}/best.pth`{md5}; `dvc pull` restores them in a clone. To use them:\n\n"
        f"    actionzoo predict runs/{dataset}/{model} video.mp4"
    )
