"""A made-up mirror of Kinetics in the exact public layout, small, flaws included, for demo and tests.

The classes differ in motion alone: shapes rise, sink, grow or shrink, over and over. Place, size, colour, texture and
number of shapes are drawn alike for all classes, so that no single frame tells them apart, and neither does a mirror.

    up, down        all shapes wander through the picture and come in again on the other side
    grow, shrink    all shapes change size, log-uniformly from end to end of the range, and start again at the other end
"""

import concurrent.futures
import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from .transcode import Encode, ffmpeg_version, from_frames, rotate

MOTIONS = {
    # names as Kinetics has them, with the characters that break scripts
    "climbing a rope": "up",
    "massaging person's head": "down",
    "passing American football (in game)": "grow",
    "skiing (not slalom or crosscountry)": "shrink",
}
OFFICIAL = "https://s3.amazonaws.com/kinetics"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirror:
    """Size of a made-up mirror, in clips that are usable in the end; make_mirror says what comes on top."""

    train_clips: int
    """Per class; likewise the next two."""
    val_clips: int
    test_clips: int
    parts: int
    """Per split."""
    seed: int


def make_mirror(
    root: Path, size: Mirror, *, jobs: int | None = None, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Make the mirror under `root`, unless it is there already, whole and of this size. Equal arguments, equal bytes.

    Beside the clips that `size` counts, as in the real data, train has: a clip that is cut off in its part and whole in
    the archive of replacements, one filmed by a turned phone, one with a variable frame rate (all three usable), a line
    whose clip is nowhere, a clip of zero bytes, and a clip that no line lists. val has a turned phone's clip too. Every
    part has a `._` file of macOS.
    """
    stamp = json.dumps(dataclasses.asdict(size) | {"ffmpeg": ffmpeg_version(), "code": _own_digest()}, indent=2)
    if (root / "mirror.json").is_file() and (root / "mirror.json").read_text() == stamp:
        return
    fresh = root.with_name(root.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    casts = {split: _cast(split, size) for split in ("train", "val", "test")}
    total = sum(len(cast) for cast in casts.values())
    with concurrent.futures.ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        done = itertools.count(1)
        for split, cast in casts.items():
            videos = {}
            for role, video in zip(cast, pool.map(_film, cast), strict=True):
                videos[role] = video
                if progress:
                    progress("make the demo's mirror", next(done), total)
            _write_split(fresh / "400", split, videos, size.parts)
    (fresh / "mirror.json").write_text(stamp)
    shutil.rmtree(root, ignore_errors=True)
    os.replace(fresh, root)


def render(motion: str, rng: np.random.Generator, *, num_frames: int, height: int, width: int) -> np.ndarray:
    """A clip of the given motion: uint8 RGB (num_frames, height, width, 3)."""
    short = min(height, width)
    canvas = _texture(rng, height, width, contrast=50)
    frames = np.repeat(canvas[None], num_frames, axis=0)
    for _ in range(rng.integers(2, 5)):
        patch, mask = _shape(rng)
        # one round takes 72 to 104 frames: a stride of 16 frames is well below half a round, so it cannot look reversed
        phase = rng.random() + np.arange(num_frames) / rng.uniform(72, 104) * (-1 if motion in ("up", "shrink") else 1)
        still = rng.random()
        moves = motion in ("up", "down")
        y = (phase if moves else np.full(num_frames, still)) % 1 * height
        grade = (np.full(num_frames, still) if moves else phase) % 1
        side = short * _SMALLEST * (_LARGEST / _SMALLEST) ** grade
        x = rng.uniform(0.15, 0.85) * width
        for frame, y_now, side_now in zip(frames, y, side, strict=True):
            for wrapped in (y_now - height, y_now, y_now + height):
                _stick(frame, patch, mask, x, wrapped, side_now)
    return frames


_SMALLEST, _LARGEST = 0.2, 0.6  # side of a shape over the short side of the picture
_PATCH = 128  # pixels of a shape's texture, before it is scaled


@dataclasses.dataclass(frozen=True)
class _Role:
    """One clip to film: who it is, and what is wrong with it."""

    split: str
    class_name: str
    number: int
    flaw: str = ""
    seed: int = 0

    @property
    def rng(self) -> np.random.Generator:
        key = f"{self.seed}/{self.split}/{self.class_name}/{self.number}/{self.flaw}"
        return np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))

    @property
    def video_id(self) -> str:
        rng = self.rng
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        youtube_id = "".join(letters[i] for i in rng.integers(0, len(letters), 11))
        if self.number % 5 == 1:
            youtube_id = "-_" + youtube_id[2:]  # what `split("_")` and command lines stumble over
        start = int(rng.integers(0, 290))
        return f"{youtube_id}_{start:06d}_{start + 10:06d}"


def _cast(split: str, size: Mirror) -> list[_Role]:
    """All clips of a split, also those that will be nowhere."""
    per_class = {"train": size.train_clips, "val": size.val_clips, "test": size.test_clips}[split]
    names = list(MOTIONS)
    flaws: dict[tuple[str, int], str] = {}
    extras: list[str] = []
    if split == "train":
        flaws = {(names[0], 0): "cut off", (names[1], 0): "turned", (names[2], 0): "variable rate"}
        extras = ["nowhere", "zero bytes", "unlisted"]
    if split == "val":
        flaws = {(names[0], 0): "turned"}
    cast = [
        _Role(split, name, number, flaws.get((name, number), ""), size.seed)
        for number in range(per_class)
        for name in names
    ]
    cast += [_Role(split, names[i], per_class, flaw, size.seed) for i, flaw in enumerate(extras)]
    # parts as they come: classes mixed
    order = np.random.default_rng(size.seed).permutation(len(cast))
    return [cast[i] for i in order]


def _film(role: _Role) -> bytes:
    """The clip as an mp4 file."""
    if role.flaw in ("nowhere", "zero bytes"):
        return b""
    rng = role.rng
    short = 2 * int(rng.integers(163, 173))
    height, width = (short, short * 4 // 6 * 2) if rng.random() < 0.7 else (short * 4 // 6 * 2, short)
    num_frames, fps = int(rng.integers(66, 85)), float(rng.choice([25, 30]))
    frames = render(MOTIONS[role.class_name], rng, num_frames=num_frames, height=height, width=width)
    encode = Encode(preset="ultrafast", crf=28, gop=12, tune="none")
    if role.flaw == "turned":
        lying = np.ascontiguousarray(np.rot90(frames, axes=(2, 1)))  # clockwise
        return rotate(from_frames(lying, fps=fps, encode=encode), 90)
    return from_frames(frames, fps=fps, encode=encode, hold_every=3 if role.flaw == "variable rate" else 0)


def _write_split(root: Path, split: str, videos: dict[_Role, bytes], parts: int) -> None:
    members = {role: video for role, video in videos.items() if role.flaw != "nowhere"}
    for number in range(parts):
        files = {"._junk.mp4": b"\x00\x05\x16\x07 of macOS"}
        for role in list(members)[number::parts]:
            video = members[role]
            files[f"{role.video_id}.mp4"] = video[: len(video) // 2] if role.flaw == "cut off" else video
        write_archive(root / split / f"part_{number}.tar.gz", files)
    urls = [f"{OFFICIAL}/400/{split}/part_{number}.tar.gz\n" for number in range(parts)]
    (root / split / f"k400_{split}_path.txt").write_text("".join(urls))
    (root / "annotations").mkdir(exist_ok=True)
    with open(root / "annotations" / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
        for role in videos:
            if role.flaw != "unlisted":
                start, end = int(role.video_id[-13:-7]), int(role.video_id[-6:])
                lines.writerow([role.class_name, role.video_id[:11], start, end, split, 0])
    whole = {role: video for role, video in videos.items() if role.flaw == "cut off"}
    if whole:
        name = "replacement_for_corrupted_k400"
        write_archive(root / f"{name}.tgz", {f"{name}/{role.video_id}.mp4": whole[role] for role in whole})


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """Smooth coloured blobs: uint8 (height, width, 3)."""
    coarse = rng.normal(0, contrast, (6, 6, 3)) + rng.uniform(60, 195, 3)
    return cv2.resize(np.clip(coarse, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def _shape(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A disc, a square or a three- to six-pointed figure: texture uint8 (P, P, 3) and mask uint8 (P, P), 255 inside.

    Symmetric from top to bottom in distribution, so that it has no head that would tell where it goes.
    """
    stripes = cv2.resize(
        rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), (_PATCH, _PATCH), interpolation=cv2.INTER_NEAREST
    )
    mask = np.zeros((_PATCH, _PATCH), np.uint8)
    corners = int(rng.integers(3, 9))
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    centre, radius = _PATCH / 2, _PATCH / 2 - 2
    points = np.stack([centre + radius * np.cos(angles), centre + radius * np.sin(angles)], axis=1)
    if corners == 8:
        cv2.circle(mask, (_PATCH // 2, _PATCH // 2), int(radius), 255, -1)
    else:
        cv2.fillPoly(mask, [points.astype(np.int32)], 255)
    return stripes, mask


def _stick(frame: np.ndarray, patch: np.ndarray, mask: np.ndarray, x: float, y: float, side: float) -> None:
    """Draw the shape into `frame`, centred at (x, y) in pixels, `side` pixels wide, as far as it is within."""
    height, width, _ = frame.shape
    left, right = max(int(x - side / 2), 0), min(int(x + side / 2) + 1, width)
    top, bottom = max(int(y - side / 2), 0), min(int(y + side / 2) + 1, height)
    if left >= right or top >= bottom:
        return
    scale = side / _PATCH
    place = np.array([[scale, 0, x - side / 2 - left], [0, scale, y - side / 2 - top]])
    size = (right - left, bottom - top)
    drawn = cv2.warpAffine(patch, place, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(mask, place, size, flags=cv2.INTER_LINEAR)
    cv2.copyTo(drawn, cv2.threshold(inside, 127, 255, cv2.THRESH_BINARY)[1], frame[top:bottom, left:right])


def _own_digest() -> str:
    """A mirror that an older version of this file made is made anew."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
