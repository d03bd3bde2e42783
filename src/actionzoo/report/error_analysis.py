"""Where a model errs: accuracy per class, confusion, and the misclassified clips of the highest loss.

    plots/<dataset>/classes/<model>/     class, clips, right, accuracy; one line per label
                    confusion/<model>/   actual, predicted; one line per clip, ordered by video_id
                    views/<model>/       views, top1, top5; averaged over one view of each clip, over two …
    runs/<dataset>/<model>/errors/       errors.json    the most confused pairs and the worst clips
                                         confusion.svg  the confusion matrix as a picture
                                         01.jpg …       a strip of frames of each worst clip

Equal scores and clips give equal files.
"""

import csv
import dataclasses
import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, FiniteFloat
from pydantic.dataclasses import dataclass

from ..errors import MachineFault, UserError
from ..files.atomic import atomic_write
from ..files.csv_cells import plain_cell, safe_cell
from ..files.json_files import read_json, write_json
from ..kinetics.manifest import Clip
from ..run_files import Plot, RunFiles

MAX_PAIRS, MAX_WORST = 20, 12
"""How many confused pairs and worst clips are kept."""

STRIP_FRAMES, STRIP_HEIGHT = 8, 90
"""Frames side by side in a strip, and its height in pixels."""

TABLES: tuple[Plot, ...] = ("classes", "confusion", "views")

FORMAT_VERSION = 3
"""Version of errors.json."""


_STRICT = ConfigDict(strict=True)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ConfusedPair:
    actual: str
    """Class name."""
    predicted: str
    """Class name."""
    clips: int
    """Clips of the class `actual` that were predicted as `predicted`."""
    of: int
    """All evaluated clips of the class `actual`."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WorstClip:
    """A misclassified clip."""

    video_id: str
    actual: str
    """Class name."""
    predicted: str
    """Class name."""
    probability: FiniteFloat
    """Of the predicted class, 0 to 1."""
    actual_probability: FiniteFloat
    """Of the actual class, 0 to 1."""
    loss: FiniteFloat
    """Cross entropy, in nats."""
    strip: Annotated[str, Field(pattern=r"^[0-9]{2}\.jpg$")] | None
    """File name of the strip in the folder; None if the clip could not be read."""
    fault: str
    """Why there is no strip; empty if there is one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorAnalysis:
    """What `write_error_analysis` wrote, read back."""

    classes: list[str]
    """Class names by label."""
    counts: list[tuple[int, int]]
    """Per class: evaluated clips, and correctly classified ones."""
    matrix: npt.NDArray[np.int64]
    """(classes, classes): number of clips by actual class (axis 0) and predicted class (axis 1)."""
    pairs: list[ConfusedPair]
    """The most frequent first."""
    worst: list[WorstClip]
    """The highest loss first."""
    by_views: list[tuple[int, float, float]]
    """Number of views averaged, top1, top5 (0 to 1)."""
    folder: Path
    """Folder of the strips."""


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Class probabilities of the evaluated clips."""

    video_ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    """(clips,)."""
    probabilities: npt.NDArray[np.float64]
    """(clips, classes)."""
    classes: Sequence[str]
    """Class names by label."""
    by_views: Sequence[Mapping[str, float]] = ()
    """Keys views, top1, top5: accuracies by the number of views averaged."""


def write_error_analysis(
    scores: ClipScores, clips: Iterable[Clip], data_folder: Path, files: RunFiles, *, fingerprint: str
) -> list[Path]:
    """Analyse the scores of an evaluation, write the files and return their paths.

    `clips` are those of the manifest in `data_folder`, from which the strips are read.
    """
    ordered = _sorted(scores)
    predicted = _predictions(ordered.probabilities)
    tables = _tables(files)
    _write_csv(tables["classes"], ["class", "clips", "right", "accuracy"], _class_lines(ordered, predicted))
    names = (
        [ordered.classes[label], ordered.classes[guess]] for label, guess in zip(ordered.labels, predicted, strict=True)
    )
    _write_csv(tables["confusion"], ["actual", "predicted"], names)
    by_views = [[line["views"], round(line["top1"], 6), round(line["top5"], 6)] for line in ordered.by_views]
    _write_csv(tables["views"], ["views", "top1", "top5"], by_views)
    by_id = {clip.video_id: clip for clip in clips if clip.is_usable}
    mark = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint}
    _write_folder(files.errors, mark, ordered, predicted, lambda video_id: _strip(data_folder, by_id.get(video_id)))
    return [*tables.values(), *sorted(files.errors.iterdir())]


def read_error_analysis(files: RunFiles) -> ErrorAnalysis | None:
    """The error analysis of a run, or None if there is none. Raises UserError for damaged files."""
    folder, tables = files.errors, _tables(files)
    if not (content := read_json(folder / "errors.json")):
        return None
    remedy = f"delete them and run dvc repro evaluate@{files.model}"
    if (version := content.get("format_version")) != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'errors.json'}: format_version is {version!r}, expected {FORMAT_VERSION}; the folder and its "
            f"tables in {tables['classes'].parents[2]} come from another version of actionzoo: {remedy}"
        )
    try:
        lines = {kind: _read_csv(path) for kind, path in tables.items()}
        classes = [line["class"] for line in lines["classes"]]
        label_of = {class_name: label for label, class_name in enumerate(classes)}
        pairs = [(label_of[line["actual"]], label_of[line["predicted"]]) for line in lines["confusion"]]
        actual, predicted = np.array(pairs, np.int64).reshape(-1, 2).T
        return ErrorAnalysis(
            classes=classes,
            counts=[(int(line["clips"]), int(line["right"])) for line in lines["classes"]],
            matrix=_matrix(len(classes), actual, predicted),
            pairs=[ConfusedPair(**pair) for pair in content["pairs"]],
            worst=[WorstClip(**clip) for clip in content["worst"]],
            by_views=[(int(line["views"]), float(line["top1"]), float(line["top5"])) for line in lines["views"]],
            folder=folder,
        )
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{folder} and the tables {', '.join(map(str, tables.values()))} do not go together ({error!r}); {remedy}"
        ) from None


def _tables(files: RunFiles) -> dict[Plot, Path]:
    return {kind: files.plot(kind) for kind in TABLES}


def _sorted(scores: ClipScores) -> ClipScores:
    """Ordered by video_id, so that the files do not depend on the order of evaluation."""
    order = sorted(range(len(scores.video_ids)), key=scores.video_ids.__getitem__)
    video_ids = [scores.video_ids[index] for index in order]
    return ClipScores(video_ids, scores.labels[order], scores.probabilities[order], scores.classes, scores.by_views)


def _predictions(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The label of the highest probability; of equal ones the larger label, as in top1 (engine.metrics)."""
    last: npt.NDArray[np.int64] = probabilities.shape[1] - 1 - probabilities[:, ::-1].argmax(axis=1)
    return last


def _class_lines(scores: ClipScores, predicted: npt.NDArray[np.int64]) -> list[list[str | int | float]]:
    """Lines of classes.csv; the accuracy of a class without clips is empty."""
    classes, labels = scores.classes, scores.labels
    totals = np.bincount(labels, minlength=len(classes)).tolist()
    rights = np.bincount(labels[labels == predicted], minlength=len(classes)).tolist()
    return [
        [name, total, right, round(right / total, 6) if total else ""]
        for name, total, right in zip(classes, totals, rights, strict=True)
    ]


def _matrix(num_classes: int, labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def _pairs(scores: ClipScores, predicted: npt.NDArray[np.int64]) -> list[ConfusedPair]:
    classes, labels = scores.classes, scores.labels
    totals = Counter(labels.tolist())
    both = zip(labels.tolist(), predicted.tolist(), strict=True)
    wrong = Counter((label, guess) for label, guess in both if label != guess)
    most = sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_PAIRS]
    return [
        ConfusedPair(actual=classes[label], predicted=classes[guess], clips=count, of=totals[label])
        for (label, guess), count in most
    ]


def _worst(
    scores: ClipScores, predicted: npt.NDArray[np.int64], strip: Callable[[str], bytes | str]
) -> list[tuple[WorstClip, bytes]]:
    """The misclassified clips of the highest loss, and their strips (empty where there is none)."""
    classes, labels, probabilities = scores.classes, scores.labels, scores.probabilities
    indices = range(len(labels))
    actual = probabilities[indices, labels]
    wrong = [index for index in indices if labels[index] != predicted[index]]
    worst: list[tuple[WorstClip, bytes]] = []
    for index in sorted(wrong, key=lambda index: (actual[index], scores.video_ids[index]))[:MAX_WORST]:
        image = strip(scores.video_ids[index])
        jpeg, fault = (image, "") if isinstance(image, bytes) else (b"", image)
        clip = WorstClip(
            video_id=scores.video_ids[index],
            actual=classes[labels[index]],
            predicted=classes[predicted[index]],
            probability=round(float(probabilities[index, predicted[index]]), 6),
            actual_probability=round(float(actual[index]), 6),
            loss=round(float(-np.log(max(actual[index], 1e-12))), 4),
            strip=f"{len(worst) + 1:02d}.jpg" if jpeg else None,
            fault=fault,
        )
        worst.append((clip, jpeg))
    return worst


def _write_folder(
    folder: Path,
    mark: Mapping[str, Any],
    scores: ClipScores,
    predicted: npt.NDArray[np.int64],
    strip: Callable[[str], bytes | str],
) -> None:
    """Replace the folder. `strip` returns a clip's strip as a JPEG, or why there is none."""
    from .charts import confusion_chart, standalone

    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    matrix = _matrix(len(scores.classes), scores.labels, predicted)
    chart = standalone(confusion_chart(scores.classes, matrix.tolist()))
    (fresh / "confusion.svg").write_text(chart, encoding="utf-8")
    worst = _worst(scores, predicted, strip)
    for clip, image in worst:
        if clip.strip:
            (fresh / clip.strip).write_bytes(image)
    pairs = [dataclasses.asdict(pair) for pair in _pairs(scores, predicted)]
    write_json(
        fresh / "errors.json", {**mark, "pairs": pairs, "worst": [dataclasses.asdict(clip) for clip, _ in worst]}
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def _strip(data_folder: Path, clip: Clip | None) -> bytes | str:
    """A JPEG of frames spread over the clip, or why there is none."""
    import cv2

    from ..clips.readers import Undecodable, open_clip, read

    if clip is None:
        return "the manifest has no usable clip of this id any more"
    try:
        reader = open_clip(data_folder, clip.stored())
        frame_indices = ((np.arange(STRIP_FRAMES) + 0.5) * reader.num_frames / STRIP_FRAMES).astype(int)
        frames = read(reader, frame_indices)
    except Undecodable as error:
        return str(error)
    except MachineFault:  # not the clip's fault
        raise
    except Exception as error:
        return f"{clip.video_id}: {' '.join(str(error).split())[:200]}"
    width = max(1, round(frames.shape[2] * STRIP_HEIGHT / frames.shape[1]))
    small = [cv2.resize(frame, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(np.hstack(small), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes()


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: plain_cell(cell or "") for key, cell in line.items() if key} for line in csv.DictReader(file)]


def _write_csv(path: Path, columns: list[str], lines: Iterable[Sequence[str | int | float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # names may hold anything
    writer.writerow(columns)
    writer.writerows([safe_cell(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
