"""Where a row errs: its accuracy class by class, the classes it takes for one another, the clips it got most wrong.

    metrics/<dataset>/<row>.classes.csv         class, clips, right, accuracy; label by label
                      <row>.confusion.csv       actual, predicted; a line per clip, in the order of their ids
                      <row>.views.csv           views, top1, top5; with one view of each clip, with two …
                      <row>.looks/looks.json    the most confused pairs and the worst clips
                                  confusion.svg the same as a picture
                                  01.jpg …      eight frames of each of the worst clips, side by side

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
from typing import Any

import numpy as np

from ..errors import MachineFault, UserError
from ..files.atomic import atomic_write
from ..files.csv_cells import plain_cell, safe_cell
from ..files.json_files import read_json, write_json
from ..kinetics.manifest import Clip

PAIRS, WORST = 20, 12
"""How many are kept of each."""

FRAMES, HEIGHT = 8, 90
"""Of a strip: frames side by side, pixels."""

TABLES = ("classes", "confusion", "views")

FORM = 2
"""Of what is written: another one is made anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looks:
    """What was written, read again."""

    classes: list[str]
    """By label."""
    counts: list[tuple[int, int]]
    """Of each class: clips, and how many of them were right."""
    matrix: np.ndarray
    """int64 (classes, classes): clips by what they are and what they were taken for."""
    pairs: list[dict[str, Any]]
    """actual, predicted, clips, of; the most frequent first."""
    worst: list[dict[str, Any]]
    """video_id, actual, predicted, probability (of what it was taken for), actual_probability, loss, strip, fault."""
    by_views: list[tuple[int, float, float]]
    """Number of views, top1, top5."""
    folder: Path
    """Where the strips lie."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A test's scores, a line per clip."""

    video_ids: Sequence[str]
    labels: np.ndarray
    """int64 (clips,)."""
    probabilities: np.ndarray
    """float64 (clips, classes)."""
    classes: Sequence[str]
    by_views: Sequence[Mapping[str, float]] = ()
    """views, top1, top5: accuracies by the number of views that are averaged."""


def write_looks(
    scored: Callable[[], Scored], clips: Iterable[Clip], form: Path, metrics: Path, *, fingerprint: str
) -> list[Path]:
    """Look at a test's scores and write what is seen beside `metrics`, its row's <row>.json; gives the files.

    `clips` are the manifest's, and lie in `form`. Scores are not asked for if the files are of this very test already.
    """
    stem = metrics.with_suffix("")
    folder = stem.with_name(f"{stem.name}.looks")
    tables = [stem.with_name(f"{stem.name}.{kind}.csv") for kind in TABLES]
    mark = {"form": FORM, "of": fingerprint}
    if not (mark.items() <= read_json(folder / "looks.json").items() and all(path.is_file() for path in tables)):
        test = _sorted(scored())
        predicted = _predictions(test.probabilities)
        _write_csv(tables[0], ["class", "clips", "right", "accuracy"], _by_class(test, predicted))
        names = (
            [test.classes[label], test.classes[guess]] for label, guess in zip(test.labels, predicted, strict=True)
        )
        _write_csv(tables[1], ["actual", "predicted"], names)
        by_views = [[line["views"], round(line["top1"], 6), round(line["top5"], 6)] for line in test.by_views]
        _write_csv(tables[2], ["views", "top1", "top5"], by_views)
        facts = mark | {"pairs": _pairs(test, predicted), "worst": _worst(test, predicted)}
        by_id = {clip.video_id: clip for clip in clips if clip.is_usable}
        matrix = _matrix(len(test.classes), test.labels, predicted)
        _write_folder(folder, facts, by_id, form, test.classes, matrix)
    return [*tables, *sorted(folder.iterdir())]


def read_looks(metrics: Path) -> Looks | None:
    """What `write_looks` wrote beside a row's <row>.json; None where it did not. Raises UserError for damaged files."""
    stem = metrics.with_suffix("")
    folder = stem.with_name(f"{stem.name}.looks")
    if not (facts := read_json(folder / "looks.json")):
        return None
    paths = {kind: stem.with_name(f"{stem.name}.{kind}.csv") for kind in TABLES}
    try:
        lines = {kind: _read_csv(path) for kind, path in paths.items()}
        classes = [line["class"] for line in lines["classes"]]
        places = {name: label for label, name in enumerate(classes)}
        pairs = [(places[line["actual"]], places[line["predicted"]]) for line in lines["confusion"]]
        actual, predicted = np.array(pairs, np.int64).reshape(-1, 2).T
        return Looks(
            classes=classes,
            counts=[(int(line["clips"]), int(line["right"])) for line in lines["classes"]],
            matrix=_matrix(len(classes), actual, predicted),
            pairs=facts["pairs"],
            worst=facts["worst"],
            by_views=[(int(line["views"]), float(line["top1"]), float(line["top5"])) for line in lines["views"]],
            folder=folder,
        )
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{stem}.looks, .classes.csv, .confusion.csv and .views.csv do not go together ({error!r}); delete them "
            f"and run dvc repro evaluate@{stem.name}"
        ) from None


def _sorted(test: Scored) -> Scored:
    """By id: files do not depend on the order in which clips were tested."""
    order = sorted(range(len(test.video_ids)), key=test.video_ids.__getitem__)
    ids = [test.video_ids[place] for place in order]
    return Scored(ids, test.labels[order], test.probabilities[order], test.classes, test.by_views)


def _predictions(shares: np.ndarray) -> np.ndarray:
    """Of equal scores the later class, as in top1 (engine.metrics)."""
    return shares.shape[1] - 1 - shares[:, ::-1].argmax(axis=1)


def _by_class(test: Scored, predicted: np.ndarray) -> list[list[Any]]:
    """A class without clips has no accuracy."""
    classes, labels = test.classes, test.labels
    of = np.bincount(labels, minlength=len(classes)).tolist()
    right = np.bincount(labels[labels == predicted], minlength=len(classes)).tolist()
    return [
        [name, clips, good, round(good / clips, 6) if clips else ""]
        for name, clips, good in zip(classes, of, right, strict=True)
    ]


def _matrix(num_classes: int, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def _pairs(test: Scored, predicted: np.ndarray) -> list[dict[str, Any]]:
    classes, labels = test.classes, test.labels
    of = Counter(labels.tolist())
    both = zip(labels.tolist(), predicted.tolist(), strict=True)
    wrong = Counter((label, guess) for label, guess in both if label != guess)
    most = sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[:PAIRS]
    return [
        {"actual": classes[label], "predicted": classes[guess], "clips": count, "of": of[label]}
        for (label, guess), count in most
    ]


def _worst(test: Scored, predicted: np.ndarray) -> list[dict[str, Any]]:
    """The wrong clips to whose class the network gave least: those of the highest loss."""
    classes, labels, shares, places = test.classes, test.labels, test.probabilities, range(len(test.labels))
    truth = shares[places, labels]
    wrong = [place for place in places if labels[place] != predicted[place]]
    return [
        {
            "video_id": test.video_ids[place],
            "actual": classes[labels[place]],
            "predicted": classes[predicted[place]],
            "probability": round(float(shares[place, predicted[place]]), 6),
            "actual_probability": round(float(truth[place]), 6),
            "loss": round(float(-np.log(max(truth[place], 1e-12))), 4),
        }
        for place in sorted(wrong, key=lambda place: (truth[place], test.video_ids[place]))[:WORST]
    ]


def _write_folder(
    folder: Path,
    facts: dict[str, Any],
    clips: Mapping[str, Clip],
    form: Path,
    classes: Sequence[str],
    matrix: np.ndarray,
) -> None:
    from .charts import confusion_chart, standalone

    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / "confusion.svg").write_text(standalone(confusion_chart(classes, matrix.tolist())), encoding="utf-8")
    for number, line in enumerate(facts["worst"], start=1):
        strip = _strip(form, clips.get(line["video_id"]))
        line["strip"], line["fault"] = (None, strip) if isinstance(strip, str) else (f"{number:02d}.jpg", "")
        if not isinstance(strip, str):
            (fresh / line["strip"]).write_bytes(strip)
    write_json(fresh / "looks.json", facts)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def _strip(form: Path, clip: Clip | None) -> bytes | str:
    """A JPEG of frames from all over the clip, or why it cannot be had."""
    import cv2

    from ..clips.readers import Undecodable, open_clip, read

    if clip is None:
        return "it is no usable clip of the manifest any more"
    try:
        reader = open_clip(form, clip)
        wanted = ((np.arange(FRAMES) + 0.5) * reader.num_frames / FRAMES).astype(int)
        frames = read(reader, wanted)
    except Undecodable as error:
        return str(error)
    except MachineFault:  # says nothing about the clip
        raise
    except Exception as error:
        return f"{clip.video_id}: {' '.join(str(error).split())[:200]}"
    width = max(1, round(frames.shape[2] * HEIGHT / frames.shape[1]))
    small = [cv2.resize(frame, (width, HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(np.hstack(small), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes()


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: plain_cell(cell or "") for key, cell in line.items() if key} for line in csv.DictReader(file)]


def _write_csv(path: Path, columns: list[str], lines: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # names may hold anything
    writer.writerow(columns)
    writer.writerows([safe_cell(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
