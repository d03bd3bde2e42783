"""Pictures of a data set's classes: a sheet of middle frames per class, and one overview of all classes."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import heapq
import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..clips.readers import Undecodable, open_clip, read
from ..errors import MachineFault
from ..kinetics.manifest import Clip
from ..process.progress import Progress

Image = npt.NDArray[np.uint8]
"""RGB, (height, width, 3)."""

FRAME_WIDTH, FRAME_HEIGHT, CAPTION_HEIGHT, SHEET_COLUMNS = 160, 120, 26, 4
"""Sizes of a class's sheet: pixels of a frame and of the caption below it, frames side by side."""

THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT, OVERVIEW_COLUMNS = 96, 72, 20
"""Sizes of the overview: pixels of a class's picture, classes side by side."""

_GREY = 208


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The pictures of one class."""

    label: int
    clips: Sequence[Clip]
    faults: dict[str, str]
    """video_id -> why the clip did not decode."""

    @property
    def file(self) -> str:
        return f"class_{self.label:03d}.jpg"


def choose_clips(clips: Sequence[Clip], num_classes: int, per_class: int) -> list[list[Clip]]:
    """Up to `per_class` usable clips of each label, drawn pseudo-randomly: equal for equal clips.

    Clips without a label (-1) go to the last class.
    """

    def rank(clip: Clip) -> tuple[bytes, str]:
        return hashlib.sha256(clip.video_id.encode(errors="replace")).digest(), clip.split

    by_label: list[list[Clip]] = [[] for _ in range(num_classes)]
    for clip in clips:
        if clip.is_usable:
            by_label[clip.label].append(clip)
    return [heapq.nsmallest(per_class, of_label, key=rank) for of_label in by_label]


def draw_sheets(
    chosen: Sequence[Sequence[Clip]], data_folder: Path, out: Path, *, jobs: int, on_progress: Progress | None
) -> list[Sheet]:
    """Write out/class_<label>.jpg for each class with clips, and out/classes.jpg, the overview.

    `chosen` are the clips by label, read from `data_folder` by `jobs` threads. A clip that does not decode is grey.
    """
    overview = np.full(
        (-(-len(chosen) // OVERVIEW_COLUMNS) * THUMBNAIL_HEIGHT, OVERVIEW_COLUMNS * THUMBNAIL_WIDTH, 3), _GREY, np.uint8
    )
    sheets, done, total = [], itertools.count(1), sum(map(len, chosen))
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for label, clips in enumerate(chosen):
            frames, faults = [], {}
            has_thumbnail = False
            for clip, image in zip(clips, pool.map(functools.partial(_middle_frame, data_folder), clips), strict=True):
                if isinstance(image, str):
                    faults[clip.video_id] = image
                    image = np.full((FRAME_HEIGHT, FRAME_WIDTH, 3), _GREY, np.uint8)
                elif not has_thumbnail:
                    has_thumbnail = True
                    x, y = thumbnail_position(label)
                    thumbnail = _fit(image, THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT)
                    overview[y : y + THUMBNAIL_HEIGHT, x : x + THUMBNAIL_WIDTH] = thumbnail
                frames.append(_with_caption(_fit(image, FRAME_WIDTH, FRAME_HEIGHT), clip))
                if on_progress:
                    on_progress("pictures of clips", next(done), total)
            sheets.append(Sheet(label, clips, faults))
            if frames:
                _save(out / sheets[-1].file, _grid(frames))
    if chosen:
        _save(out / "classes.jpg", overview)
    return sheets


def thumbnail_position(label: int) -> tuple[int, int]:
    """The left and upper edge of a class's picture in the overview, in pixels."""
    row, column = divmod(label, OVERVIEW_COLUMNS)
    return column * THUMBNAIL_WIDTH, row * THUMBNAIL_HEIGHT


def _middle_frame(data_folder: Path, clip: Clip) -> Image | str:
    """The frame, or why there is none."""
    try:
        reader = open_clip(data_folder, clip.stored())
        frame: Image = read(reader, np.array([reader.num_frames // 2]))[0]
        return frame
    except Undecodable as error:
        return str(error)
    except MachineFault:  # not the clip's fault
        raise
    except Exception as error:
        return f"{clip.video_id}: {' '.join(str(error).split())[:200]}"


def _grid(images: Sequence[Image]) -> Image:
    """Images of equal size in rows of SHEET_COLUMNS; the last row is filled up with grey."""
    columns = min(SHEET_COLUMNS, len(images))
    empty = np.full_like(images[0], _GREY)
    images = [*images, *[empty] * (-len(images) % columns)]
    return np.vstack([np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)])


def _with_caption(image: Image, clip: Clip) -> Image:
    caption = np.full((CAPTION_HEIGHT, FRAME_WIDTH, 3), 255, np.uint8)
    # the font has ASCII only; the page shows the ids in full
    video_id = "".join(sign if " " <= sign <= "~" else "?" for sign in clip.video_id)
    video_id = video_id if len(video_id) <= 32 else f"{video_id[:29]}..."
    lines = [(video_id, 0.36), (f"{clip.split} {clip.state}, {clip.num_frames} frames", 0.33)]
    for number, (text, scale) in enumerate(lines):
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        scale *= min(1.0, (FRAME_WIDTH - 4) / width)
        origin = (2, 10 + 12 * number)
        cv2.putText(caption, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (60, 60, 60), 1, cv2.LINE_AA)
    return np.vstack([image, caption])


def _fit(image: Image, width: int, height: int) -> Image:
    """The whole image, scaled and centred on grey of the given size."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    fitted = np.full((height, width, 3), _GREY, np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    fitted[top : top + size[1], left : left + size[0]] = small
    return fitted


def _save(path: Path, image: Image) -> None:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    path.write_bytes(data.tobytes())
