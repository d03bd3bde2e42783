"""A data set to look at: counts, doubles and leaks, lists with their hashes, and pictures of every class.

    report/<dataset>/data.html         all of it; opens from disk
                     data.json         the same facts for programs
                     data/train.txt …  the lists that MMAction2's users know, and label_map.txt
                     data/classes.jpg  a picture of each class
                     data/class_007.jpg  the middle frames of some of its clips

The same data give the same files: no clock, no absolute path.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import heapq
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..clips.readers import Undecodable, open_clip, read
from ..errors import MachineFault
from ..files.atomic import atomic_write
from ..kinetics.manifest import STATES, Clip, export_lists, read_manifest
from ..kinetics.overview import SHOWN, Overview, as_json, difference, survey
from ..process.progress import Progress
from .html import page_templates


def write_data_report(
    data: Path, form: str, out: Path, *, pictures: int = 12, jobs: int = 1, on_progress: Progress | None = None
) -> Overview:
    """Look at data/<dataset>/<form>, write what was seen below `out`, and give it.

    `pictures` is how many clips of each class are shown, 0 for none. Raises UserError if the form is not there.
    """
    clips = read_manifest(data / form / "manifest.csv")
    fresh, files = out / ".data.partial", out / "data"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        overview = survey(data, form, clips, export_lists(clips, fresh))
        album = _Album(data / form, fresh, len(overview.class_states), pictures, jobs)
        chosen = album.choose(clips) if pictures else []
        sheets = album.paint(chosen, on_progress) if pictures else []
        shutil.rmtree(files, ignore_errors=True)
        os.replace(fresh, files)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _write(out / "data.json", as_json(overview))
    _write(out / "data.html", _html(overview, sheets, album))  # last: it vouches for the others
    return overview


@dataclasses.dataclass(frozen=True)
class _Sheet:
    """The pictures of a class."""

    label: int
    clips: list[Clip]
    faults: dict[str, str]
    """Clips that did not decode: video_id -> why."""

    @property
    def file(self) -> str:
        return f"class_{self.label:03d}.jpg"


@dataclasses.dataclass(frozen=True)
class _Album:
    """How pictures are made, and where they lie on their pages. Sizes in pixels."""

    form: Path
    out: Path
    num_classes: int
    """With one for clips without a label, if there are any."""
    pictures: int
    jobs: int

    width, height, strip, columns = 160, 120, 26, 4
    small_width, small_height, small_columns = 96, 72, 20

    def choose(self, clips: Sequence[Clip]) -> list[list[Clip]]:
        """Of each class some clips that are as good as drawn by lot, and the same ones each time."""

        def lot(clip: Clip) -> tuple[bytes, str]:
            return hashlib.sha256(clip.video_id.encode(errors="replace")).digest(), clip.split

        drawn: list[list[Clip]] = [[] for _ in range(self.num_classes)]
        for clip in clips:
            if clip.is_usable:
                drawn[clip.label].append(clip)  # label -1 is the last
        return [heapq.nsmallest(self.pictures, of, key=lot) for of in drawn]

    def paint(self, chosen: Sequence[Sequence[Clip]], on_progress: Progress | None) -> list[_Sheet]:
        """Write a page for each class, and the page of all classes."""
        rows = -(-len(chosen) // self.small_columns)
        overall = np.full((rows * self.small_height, self.small_columns * self.small_width, 3), _GREY, np.uint8)
        sheets, done, total = [], itertools.count(1), sum(map(len, chosen))
        look = functools.partial(_middle_frame, self.form)
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            for label, clips in enumerate(chosen):
                cells, faults, face = [], {}, None
                for clip, image in zip(clips, pool.map(look, clips), strict=True):
                    if isinstance(image, str):
                        faults[clip.video_id] = image
                        image = np.full((self.height, self.width, 3), _GREY, np.uint8)
                    elif face is None:
                        face = _fit(image, self.small_width, self.small_height)
                    cells.append(self._with_name(_fit(image, self.width, self.height), clip))
                    if on_progress:
                        on_progress("pictures of clips", next(done), total)
                sheets.append(_Sheet(label, list(clips), faults))
                if face is not None:
                    x, y = self.place(label)
                    overall[y : y + self.small_height, x : x + self.small_width] = face
                if cells:
                    self._save(self.out / sheets[-1].file, self._grid(cells))
        if rows:
            self._save(self.out / "classes.jpg", overall)
        return sheets

    def place(self, label: int) -> tuple[int, int]:
        """Left and upper edge of a class's picture on the page of all classes."""
        row, column = divmod(label, self.small_columns)
        return column * self.small_width, row * self.small_height

    def _grid(self, images: Sequence[np.ndarray]) -> np.ndarray:
        empty = np.full_like(images[0], _GREY)
        columns = min(self.columns, len(images))
        images = [*images, *[empty] * (-len(images) % columns)]
        return np.vstack([np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)])

    def _with_name(self, image: np.ndarray, clip: Clip) -> np.ndarray:
        strip = np.full((self.strip, self.width, 3), 255, np.uint8)
        # the font is of ASCII; the page has the names as they are
        name = "".join(sign if " " <= sign <= "~" else "?" for sign in clip.video_id)
        name = name if len(name) <= 32 else f"{name[:29]}..."
        for line, (text, scale) in enumerate(
            [(name, 0.36), (f"{clip.split} {clip.state}, {clip.num_frames} frames", 0.33)]
        ):
            (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
            scale *= min(1.0, (self.width - 4) / width)
            at = (2, 10 + 12 * line)
            cv2.putText(strip, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (60, 60, 60), 1, cv2.LINE_AA)
        return np.vstack([image, strip])

    def _save(self, path: Path, image: np.ndarray) -> None:
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
        path.write_bytes(data.tobytes())


_GREY = 208


def _middle_frame(form: Path, clip: Clip) -> np.ndarray | str:
    """uint8 RGB (H, W, 3), or why it cannot be had."""
    try:
        reader = open_clip(form, clip)
        return read(reader, np.array([reader.num_frames // 2]))[0]
    except Undecodable as error:
        return str(error)
    except MachineFault:  # says nothing about the clip
        raise
    except Exception as error:
        return f"{clip.video_id}: {' '.join(str(error).split())[:200]}"


def _fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The whole image in the middle of a grey one of that size."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    fitted = np.full((height, width, 3), _GREY, np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    fitted[top : top + size[1], left : left + size[0]] = small
    return fitted


def _html(overview: Overview, sheets: Sequence[_Sheet], album: _Album) -> str:
    jinja = page_templates()
    jinja.filters |= {"thousands": lambda number: f"{number:,}", "gigabytes": lambda size: f"{size / 1e9:,.2f}"}
    groups = [
        ("Videos with several clips in one split", overview.doubles),
        ("Equal bytes within one split", overview.same_bytes),
        ("Videos with clips in two splits", overview.leaks),
        ("Equal bytes in two splits", overview.leaked_bytes),
    ]
    return jinja.get_template("data.html.j2").render(
        overview=overview,
        names=[*overview.classes, "(no label)"],
        states=STATES,
        difference=difference,
        groups=groups,
        shown=SHOWN,
        sheets={sheet.label: sheet for sheet in sheets},
        album=album,
        sum_states=_sum_states,
    )


def _sum_states(states: dict[str, dict[str, int]], *names: str) -> int:
    """Clips of a class in these states, over all splits."""
    return sum(counts[name] for counts in states.values() for name in names)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
