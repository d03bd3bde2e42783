"""A small synthetic mirror of Kinetics in the public layout, with the flaws of the real one, for demo and tests.

The classes differ in motion alone: the same kind of marbled picture rises, shakes, grows or rests. It is drawn alike
for all classes, so that no single frame tells them apart, and a horizontal flip changes nothing.

    up      the picture moves up by 0.7 of its short side in 28 to 36 frames
    shake   it swings up and down by 0.08 of its short side, once in 10 to 12 frames
    grow    it doubles its size in 28 to 36 frames; finer detail takes the place of what has become coarse
    still   nothing moves

Colours and contrast are the same in every clip: a network of millions of weights must learn this from a hundred clips
in a minute or two on a laptop, so nothing but the motion may vary much.
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
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..files.hashes import sha256_of
from ..process.progress import Progress
from .transcode import Encode, ffmpeg_version, from_frames, rotate

MOTIONS = {
    # names as Kinetics has them, with the characters that break scripts
    "climbing a rope": "up",
    "massaging person's head": "shake",
    "passing American football (in game)": "grow",
    "using remote controller (not gaming)": "still",
}
OFFICIAL = "https://s3.amazonaws.com/kinetics"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirror:
    """Size of a synthetic mirror, in clips that are usable in the end; make_mirror lists the clips on top of them."""

    train_clips: int
    """Per class; likewise the next two."""
    val_clips: int
    test_clips: int
    parts: int
    """Per split."""
    seed: int


def make_mirror(root: Path, size: Mirror, *, jobs: int | None = None, on_progress: Progress | None = None) -> None:
    """Make the mirror under `root`, unless it is there already in this size. Equal arguments give equal bytes.

    As in the real data, train has a clip that is cut off in its part and whole in the archive of replacements, one of a
    turned phone, and one with a variable frame rate, all three usable and counted in `size`; and on top of `size` a
    line whose clip is nowhere, a clip of zero bytes, and a clip that no line lists. val has a turned phone's clip too.
    Every part has a `._` file of macOS.
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
                if on_progress:
                    on_progress("make the demo's mirror", next(done), total)
            _write_split(fresh / "400", split, videos, size.parts)
    (fresh / "mirror.json").write_text(stamp)
    shutil.rmtree(root, ignore_errors=True)
    os.replace(fresh, root)


def render(motion: str, rng: np.random.Generator, *, num_frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A clip of the given motion: uint8 RGB (num_frames, height, width, 3)."""
    short = min(height, width)
    marble = _Marble(rng)
    time = np.arange(num_frames)
    rounds = time / rng.uniform(28, 36)
    swing = np.sin(2 * np.pi * (rng.random() + time / rng.uniform(10, 12)))
    if motion == "grow":
        pictures = (marble.paint(height, width, short, octaves=octaves) for octaves in rounds)
    else:
        travel = {"up": 0.7 * rounds, "shake": 0.08 * (swing + 1), "still": 0 * rounds}[motion] * short
        travel = np.round(travel).astype(int)
        whole = marble.paint(height + travel.max(), width, short)
        pictures = (whole[top : top + height] for top in travel)
    return np.stack([_tint(picture) for picture in pictures])


class _Marble:
    """A scale-free picture: smooth noise in four octaves; the largest and the smallest fade out."""

    _OCTAVES, _TILE, _UNITS = 4, 64, 66  # the short side of a picture is 66 units, a tile of noise 64

    def __init__(self, rng: np.random.Generator) -> None:
        noise = rng.standard_normal((self._TILE, self._TILE)).astype(np.float32)
        smooth = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), 1.7)[
            self._TILE : -self._TILE, self._TILE : -self._TILE
        ]
        self._noise = np.tanh(2 * smooth / smooth.std())
        self._phase = rng.random()
        self._places = rng.uniform(0, self._TILE, (64, 2))

    def paint(self, height: int, width: int, short: int, octaves: float = 0.0) -> npt.NDArray[np.float32]:
        """float32 (height, width), about -1 to 1, enlarged by `octaves` doublings."""
        # the picture is smooth: half the pixels suffice
        rows, columns = (height + 1) // 2, (width + 1) // 2
        unit = 2 * self._UNITS / short
        y, x = (np.arange(rows) - short / 4) * unit, (np.arange(columns) - width / 4) * unit
        picture = np.zeros((rows, columns), np.float32)
        for octave in range(self._OCTAVES):
            turns, size = divmod(octave + self._phase + octaves, self._OCTAVES)
            place = self._places[(int(turns) * self._OCTAVES + octave) % len(self._places)]
            scale, weight = 2.0 ** (size - 2), np.sin(np.pi * size / self._OCTAVES) ** 2
            maps = np.meshgrid((x / scale + place[0]) % self._TILE, (y / scale + place[1]) % self._TILE)
            across, down = (grid.astype(np.float32) for grid in maps)
            picture += weight * cv2.remap(self._noise, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        scaled = cv2.resize(picture, (2 * columns, 2 * rows), interpolation=cv2.INTER_LINEAR)
        return np.asarray(scaled, np.float32)[:height, :width]


def _tint(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Two colours, the same in every clip: uint8 RGB."""
    tinted = np.empty((*picture.shape, 3), np.uint8)
    for channel, (middle, tint) in enumerate(zip(_MIDDLE, _TINT, strict=True)):  # 7 times as fast as all at once
        tinted[..., channel] = np.clip(middle + picture * tint, 0, 255)
    return tinted


# sand and slate
_MIDDLE = np.array([124, 116, 104], np.float32)
_TINT = np.array([62, 56, 48], np.float32)


@dataclasses.dataclass(frozen=True)
class _Role:
    """One clip to make, and its flaw."""

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
            youtube_id = "-_" + youtube_id[2:]  # breaks `split("_")` and command lines
        start = int(rng.integers(0, 290))
        return f"{youtube_id}_{start:06d}_{start + 10:06d}"


def _cast(split: str, size: Mirror) -> list[_Role]:
    """All clips of a split, also those that will be in no part."""
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
    # classes mixed, as in real parts
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


def _own_digest() -> str:
    """Hash of this file: a mirror that another version of it made is made anew."""
    return sha256_of(Path(__file__))
