"""MMAction2's own folders and lists -> manifest.csv, so that what is prepared already is read where it lies.

    kinetics400_val_list_videos.txt       abseiling/0wR5jVB-WPk.mp4 0           a path below a folder, a label
    kinetics400_val_list_rawframes.txt    abseiling/0wR5jVB-WPk 300 0           a folder below it, frames, a label
                                          with img_00001.jpg to img_00300.jpg in it

No pixel is copied or encoded. In the manifest's column `shard` stands the file, or the folder of frames.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from actionzoo.errors import UserError

from .manifest import SPLITS, Clip, read_manifest, write_manifest


class Contents(Protocol):
    """What was found in a video or a folder of frames."""

    num_frames: int
    width: int
    height: int
    fps: float | None


Look = Callable[[list[tuple[Path, int | None]]], Iterable[Contents | str]]
"""For each path, of frames with their number, what is in it, or why it cannot be used; in their order."""


@dataclasses.dataclass(frozen=True)
class _Line:
    path: str
    num_frames: int | None
    label: int


def adopt(
    form: Path,
    split: str,
    list_file: Path,
    folder: Path,
    *,
    look: Look,
    classes: Path | None = None,
    max_bad_share: float = 0.05,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """Write the clips of a list into `form`/manifest.csv as its `split`; gives a line that says what is there now.

    `form` is a folder by the name of what it holds, data/<dataset>/videos_256 or frames_320; splits that its manifest
    has already stay. `folder` is what the list's paths are below of. `classes` has a class name per line, in the order
    of the labels; without it a class is called by its label. A clip that is not there, or cannot be decoded, is in the
    manifest with the reason. Raises UserError: for a list that cannot be read, and for more such clips than
    `max_bad_share`, or for a form that the pipeline made.
    """
    kind = form.name.partition("_")[0]
    if kind not in ("videos", "frames"):
        raise UserError(f"{form} is to be called videos_<short side> or frames_<short side>, e.g. videos_256")
    if split not in SPLITS:
        raise UserError(f"the split is {split!r}, not one of {', '.join(SPLITS)}")
    there = read_manifest(form / "manifest.csv") if (form / "manifest.csv").is_file() else []
    if any(clip.shard.endswith(".tar") for clip in there):
        raise UserError(
            f"{form} holds shards that `dvc repro` made; give the folder's data set an entry of its own in params.yaml "
            "and name it in data.name"
        )
    lines = _read_list(list_file, has_frames=kind == "frames")
    names = _read_classes(classes) if classes else None
    if names and (beyond := [line for line in lines if line.label >= len(names)]):
        raise UserError(f"{list_file}: {beyond[0].path} has label {beyond[0].label}, but {classes} {len(names)} names")
    found = look([(folder / line.path, line.num_frames) for line in lines])
    clips = []
    for number, (line, contents) in enumerate(zip(lines, found, strict=True), 1):
        clips.append(_clip(split, line, folder / line.path, names, contents))
        if progress:
            progress("look at clips", number, len(lines))
    if not any(clip.is_usable for clip in clips):
        raise UserError(f"none of the {len(clips)} clips of {list_file} can be used below {folder}; {_first(clips)}")
    bad = [clip for clip in clips if not clip.is_usable]
    if len(bad) > max_bad_share * len(clips):
        raise UserError(
            f"{len(bad)} of the {len(clips)} clips of {list_file} cannot be used, which is more than "
            f"{max_bad_share:.1%}; {_first(bad)}"
        )
    write_manifest(form / "manifest.csv", [*(clip for clip in there if clip.split != split), *clips])
    left_out = f", {len(bad)} that cannot be used" if bad else ""
    return f"adopt: {len(clips) - len(bad)} clips of {split}{left_out} ({form / 'manifest.csv'})"


def _read_list(path: Path, *, has_frames: bool) -> list[_Line]:
    lines, seen = [], set()
    for number, text in enumerate(_text(path).splitlines(), 1):
        if not text.strip():
            continue
        # from the right: a path may have spaces in it
        fields = text.strip().rsplit(maxsplit=2 if has_frames else 1)
        counts = fields[1:]
        if len(fields) != (3 if has_frames else 2) or not all(count.isdecimal() for count in counts):
            expected = "path, number of frames, label" if has_frames else "path, label"
            raise UserError(f"{path}, line {number}: {text[:100]!r} is not `{expected}`")
        if has_frames and int(counts[0]) == 0:
            raise UserError(f"{path}, line {number}: {fields[0]} has 0 frames; leave it out")
        if fields[0] in seen:
            raise UserError(f"{path}, line {number}: {fields[0]} is listed twice")
        seen.add(fields[0])
        lines.append(_Line(fields[0], int(counts[0]) if has_frames else None, int(counts[-1])))
    if not lines:
        raise UserError(f"{path} lists nothing")
    return lines


def _read_classes(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not there; give a list with one clip per line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; give a list with one clip per line") from None


def _clip(split: str, line: _Line, path: Path, names: list[str] | None, contents: Contents | str) -> Clip:
    # without the ending, as in the lists that are exported
    video_id = line.path if line.num_frames else os.path.splitext(line.path)[0]
    named = {
        "video_id": video_id,
        "split": split,
        "label": line.label,
        "class_name": names[line.label] if names else str(line.label),
    }
    if isinstance(contents, str):
        state = "corrupt" if path.exists() else "missing"
        return Clip(**named, state=state, reason=contents if state == "corrupt" else f"{path} is not there")
    size, sha256 = _fingerprint(path)
    return Clip(
        **named,
        state="ok",
        shard=str(path.absolute()),
        offset=0,
        size=size,
        num_frames=contents.num_frames,
        width=contents.width,
        height=contents.height,
        fps=contents.fps,
        sha256=sha256,
    )


def _fingerprint(path: Path) -> tuple[int, str]:
    """Bytes, and for a video their sha256: what is made of the clips is made anew when these change."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in os.scandir(path)), ""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _first(clips: list[Clip]) -> str:
    return "the first ones: " + "; ".join(f"{clip.video_id}: {clip.reason}" for clip in clips[:3])
