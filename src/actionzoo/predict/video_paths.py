"""A `predict` request before its network is loaded: the videos and the paths of their drawn copies. Without torch."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..kinetics.folder import ENDINGS

VIDEOS = (*ENDINGS, ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv", ".gif")
"""Endings of the videos that are looked for in folders. A file that is named itself may have any."""


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """What `actionzoo predict` is asked for."""

    videos: Sequence[str | Path]
    """Files, and folders for all videos below them."""
    _: dataclasses.KW_ONLY
    top: int = 5
    """Classes that are shown."""
    window_seconds: float | None = None
    """Length of a window; None: 10 with a stride, else the whole video is predicted at once."""
    stride_seconds: float | None = None
    """From one window's start to the next; None: window_seconds."""
    draw: Path | None = None
    """The mp4 file of the drawn copy, or a folder for several."""
    as_json: bool = False

    @property
    def is_windowed(self) -> bool:
        return self.window_seconds is not None or self.stride_seconds is not None


def check_request(request: PredictRequest) -> None:
    """Check what can be checked before a network is loaded. Raises UserError.

    If some videos cannot be read, this passes, and they are reported later, one by one. If none can be read, it raises;
    with `as_json` it prints the line of each first.
    """
    check_windows(request.window_seconds, request.stride_seconds)
    paths = find_videos(request.videos)
    targets = find_targets(paths, request.draw) if request.draw else {}
    for video, target in targets.items():
        if target.exists() and video.exists() and target.samefile(video):
            raise UserError(f"{shown(target)} is the video itself; give --draw another name")
    faults = {path: fault_of(path) for path in paths}
    if not all(faults.values()):
        return
    if request.as_json:
        for path, fault in faults.items():
            print(json.dumps({"video": shown(path), "error": fault, "top": []}, ensure_ascii=False), flush=True)
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise UserError(f"{'; '.join([*faults.values()][:5])}{more}")


def check_windows(window_seconds: float | None, stride_seconds: float | None) -> None:
    """Raises UserError for a number of seconds that is not positive and finite."""
    for option, seconds in (("--window", window_seconds), ("--stride", stride_seconds)):
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(f"{option} {seconds:g}: give more than 0 seconds")


def find_videos(videos: Sequence[str | Path]) -> dict[Path, Path]:
    """Each video -> its path relative to the folder that was named. Videos below folders are included, sorted."""
    found: dict[Path, Path] = {}
    for video in map(Path, videos):
        if not os.path.isdir(video):  # unlike Path.is_dir, it answers for names that no file can have
            found.setdefault(video, Path(video.name))
            continue
        below = (Path(folder) / name for folder, _, names in os.walk(video) for name in names)
        there = sorted(path for path in below if path.suffix.lower() in VIDEOS and not path.name.startswith("."))
        if not there:
            raise UserError(f"{shown(video)} has no videos; known endings are {' '.join(VIDEOS)}")
        for path in there:
            found.setdefault(path, path.relative_to(video))
    return found


def find_targets(paths: dict[Path, Path], draw: Path) -> dict[Path, Path]:
    """Each video -> the mp4 file that its drawn copy becomes. Raises UserError.

    `draw` is an mp4 file for a single video, or a folder.
    """
    if draw.suffix.lower() == ".mp4" and not draw.is_dir():
        if len(paths) > 1:
            raise UserError(f"--draw {shown(draw)} is one file for {len(paths)} videos; name a folder")
        return dict.fromkeys(paths, draw)
    if draw.suffix and not draw.is_dir():
        raise UserError(f"--draw {shown(draw)}: what is drawn is mp4; name a file that ends in .mp4, or a folder")
    if draw.exists() and not draw.is_dir():
        raise UserError(f"--draw {shown(draw)} is a file that does not end in .mp4; name one that does, or a folder")
    targets: dict[Path, Path] = {}
    for path, name in paths.items():
        target = draw / name.with_suffix(".mp4")
        number = 1
        while target in targets.values():
            number += 1
            target = draw / name.with_name(f"{name.stem}-{number}.mp4")
        targets[path] = target
    return targets


def fault_of(path: Path) -> str:
    """Why a file cannot be read; '' if it can."""
    try:
        if path.is_file():
            path.open("rb").close()
            return ""
    except (OSError, ValueError) as error:  # the name has a zero byte, or is too long
        return f"{shown(path)} cannot be read: {error.strerror if isinstance(error, OSError) else error}"
    return f"{shown(path)} {'is no regular file' if os.path.exists(path) else 'is not there'}"


def shown(path: Path) -> str:
    """The path as printable text; bytes that are not text are escaped."""
    return str(path).encode(errors="backslashreplace").decode()
