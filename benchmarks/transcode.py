"""What our resize costs beside the usual way, over the same clips and cores, in one run.

    python benchmarks/transcode.py                               # the real footage beside the project, if it is there
    python benchmarks/transcode.py VIDEOS --short-side 320       # files, folders, tar archives of videos
    python benchmarks/transcode.py VIDEOS --encode crf=23 gop=8  # other values than those of params.yaml
    python benchmarks/transcode.py VIDEOS --sweep                # those of params.yaml, each knob turned alone

Ours is what the stage `resize` calls for each clip, its scratch files and our own Python included. The usual way is the
one of MMAction2's tools/data/resize_videos.py with dense keyframes: a probe of the size, then ffmpeg with its default
preset and threads. Measured, for both:

    CPU seconds   of the clip's processes with all their threads, and of this one meanwhile, as the kernel counts them
    SSIM          ffmpeg's, all planes, mean over the frames, to the frames as ffmpeg's default scaler leaves them:
                  what the encoding lost
    size          of the file
    decoding      of random clips of 32 frames, every second one, by decord with one thread from memory, opening
                  included: CPU seconds, the least of a few tries

Who goes first alternates from clip to clip. Ratios are taken once per repeat, of sums over the clips, and their median
is printed with the least and the largest.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import decord
import numpy as np
import yaml

from actionzoo.clips.sampling import train_frames
from actionzoo.errors import UserError
from actionzoo.kinetics import transcode as module
from actionzoo.kinetics.archives import read_archive
from actionzoo.kinetics.transcode import BadVideo, Encoded, ffmpeg_version, find_ffmpeg, transcode
from actionzoo.params import load_params
from actionzoo.params.settings import Encode
from actionzoo.process.stage import stage

PROJECT = Path(__file__).resolve().parents[1]
REAL_FOOTAGE = PROJECT.parent / "shared" / "k400-mini"
LIMITS = {"cpu": 0.6, "ssim": -0.003, "size": 1.5, "decode": 1.4}
"""At most, at least, at most, at least."""
VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".flv", ".mpg", ".mpeg")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
TIMEOUT_SECONDS = 600

# what `--sweep` turns, one line at a time. What is no key of prepare.encode goes to ffmpeg as it stands; `scaler` is
# the algorithm of swscale
SWEEP = (
    "crf=20",
    "crf=22",
    "crf=23",
    "bframes=1",
    "bframes=3",
    "gop=8",
    "gop=12",
    "gop=32",
    "gop=250",
    "preset=superfast",
    "preset=faster",
    "preset=medium",
    "tune=none",
    "tune=none coder=0",
    "refs=3",
    "x264-params=psy=1",
    "x264-params=psy=0:subme=1",
    "scaler=bilinear",
    "scaler=fast_bilinear",
    "scaler=area",
    "scaler=lanczos",
)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of ours to encode."""

    name: str
    encode: Encode
    scaler: str | None = None
    extra: dict[str, str] = dataclasses.field(default_factory=dict)
    """Options for ffmpeg beside those of `encode`."""


@dataclasses.dataclass
class Figures:
    """Of one clip, made in one way."""

    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    """One per repeat."""
    decode_seconds: list[float] = dataclasses.field(default_factory=list)
    """CPU, one per repeat, mean over the random clips."""
    ssim: float = 0.0
    size_bytes: int = 0


USUAL = "the usual way"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEOS", help="files, folders or tar archives")
    parser.add_argument("--short-side", type=int, default=256, help="pixels; 256, as shipped, or 320")
    parser.add_argument("--repeats", type=int, default=3, help="how often all is measured; 3, as shipped")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth clip only")
    parser.add_argument(
        "--encode",
        nargs="+",
        action="append",
        metavar="KEY=VALUE",
        help="in place of prepare.encode's; given again, other settings beside these, one line each",
    )
    parser.add_argument("--sweep", action="store_true", help="also turn each knob alone, one line each")
    args = parser.parse_args()
    with stage("benchmarks/transcode.py"), tempfile.TemporaryDirectory(prefix="transcode-") as scratch:
        shipped = load_params(PROJECT / "params.yaml").prepare.encode
        ways = [changed(shipped, changes) for changes in args.encode or [[]]]
        if args.sweep:
            ways += [changed(ways[0].encode, line.split()) for line in SWEEP]
        ways = [way for n, way in enumerate(ways) if all(_settings(way) != _settings(old) for old in ways[:n])]
        clips = find_clips(args.videos or [REAL_FOOTAGE], args.every)
        figures = measure(clips, ways, args.short_side, args.repeats, Path(scratch))
        print(machine())
        print(f"{len(figures)} clips, short side {args.short_side}, repeats: {args.repeats}")
        print("the usual way: ffmpeg -i IN -vf scale=-2:S -c:v libx264 -g 16 -an OUT, scale=S:-2 for upright clips")
        print(f"ours: {', '.join(f'{key} {value}' for key, value in dataclasses.asdict(ways[0].encode).items())}\n")
        print(table(figures, ways[0].name))
        if len(ways) > 1:
            print(f"\n{lines(figures, [way.name for way in ways])}")


def changed(encode: Encode, changes: Iterable[str]) -> Way:
    """`encode` with some KEY=VALUE replaced, or with options for ffmpeg beside it. Raises UserError."""
    values, extra = dataclasses.asdict(encode), {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--encode {change} is no KEY=VALUE, such as crf=22")
        if key in values:
            values[key] = yaml.safe_load(value)
        else:
            extra[key] = value
    try:
        encode = Encode(**values)
    except ValueError as error:
        raise UserError(f"--encode {' '.join(changes)}: {' '.join(str(error).split())}") from None
    return Way(" ".join(changes) or "as in params.yaml", encode, extra.pop("scaler", None), extra)


def find_clips(places: Iterable[Path], every: int) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of each different video. Raises UserError."""
    seen = set()
    for name, data in _all_clips(places):
        digest = hashlib.sha256(data).digest()
        if digest not in seen:
            seen.add(digest)
            if (len(seen) - 1) % every == 0:
                yield name, data


def measure(
    clips: Iterable[tuple[str, bytes]], ways: list[Way], short_side: int, repeats: int, scratch: Path
) -> dict[str, dict[str, Figures]]:
    """Clip -> way -> figures, the usual way among them. Clips that cannot be compared are named. Raises UserError."""
    figures = {}
    for number, (name, data) in enumerate(clips):
        try:
            figures[name] = measure_clip(data, ways, short_side, repeats, scratch, seed=number)
        except _Incomparable as error:
            print(f"{name} is left out: {error}", flush=True)
        else:
            mine, theirs = (np.median(figures[name][way].cpu_seconds) for way in (ways[0].name, USUAL))
            print(f"{name}: {mine:.2f} against {theirs:.2f} CPU seconds", file=sys.stderr, flush=True)
    if not figures:
        raise UserError("no clip could be measured; give files or folders of videos, or tar archives of them")
    return figures


def measure_clip(
    data: bytes, ways: list[Way], short_side: int, repeats: int, scratch: Path, seed: int
) -> dict[str, Figures]:
    """Way -> figures of one clip. Raises _Incomparable."""
    source, reference = scratch / "source.mp4", scratch / "reference.mp4"
    source.write_bytes(data)
    scale = f"scale=-2:{short_side}" if _is_wide(source) else f"scale={short_side}:-2"
    figures = {USUAL: Figures(), **{way.name: Figures() for way in ways}}
    makers = {USUAL: lambda: usual_way(source, scratch / "usual.mp4", scale)}
    makers |= {way.name: lambda way=way: our_way(data, way, short_side, scratch / "ours") for way in ways}
    for repeat in range(repeats):
        videos = {}
        for name in _turn(list(makers), seed + repeat):
            before = _cpu_seconds()
            videos[name] = makers[name]()
            figures[name].cpu_seconds.append(_cpu_seconds() - before)
        if repeat == 0:
            num_frames = _same_shape(videos)
            _ffmpeg("-i", source, "-vf", scale, *_LOSSLESS, reference)
            for name, video in videos.items():
                figures[name].size_bytes = len(video)
                figures[name].ssim = ssim(video, reference, scratch / "seen.mp4")
        for name, seconds in decode_random_clips(videos, num_frames, [seed, repeat]).items():
            figures[name].decode_seconds.append(seconds)
    return figures


def our_way(data: bytes, way: Way, short_side: int, scratch: Path) -> bytes:
    with _beside_params(way):
        encoded = _transcode(data, way.encode, short_side, scratch)
    if encoded.damage:
        raise _Incomparable(f"it decodes with faults: {encoded.damage}")
    return encoded.data


def usual_way(source: Path, out: Path, scale: str) -> bytes:
    """As resize_videos.py of MMAction2 does it with --dense."""
    if shutil.which("ffprobe"):
        size = ["-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "csv=p=0"]
        subprocess.run(["ffprobe", "-v", "error", *size, source], stdout=subprocess.DEVNULL, check=False)
    _ffmpeg("-i", source, "-vf", scale, "-c:v", "libx264", "-g", "16", "-an", out)
    return out.read_bytes()


def ssim(video: bytes, reference: Path, path: Path) -> float:
    """Mean over frames, which are paired by number: ways differ in how they write times down."""
    path.write_bytes(video)
    by_number = "[0:v]settb=1/25,setpts=N[a];[1:v]settb=1/25,setpts=N[b];[a][b]ssim"
    said = _ffmpeg("-i", path, "-i", reference, "-lavfi", by_number, "-f", "null", "-", loud=True)
    return float(re.findall(r"SSIM .*All:([0-9.]+)", said)[-1])


def decode_random_clips(
    videos: dict[str, bytes], num_frames: int, seed: list[int], num_clips: int = 4, tries: int = 3
) -> dict[str, float]:
    """Way -> CPU seconds per clip of 32 x 2 frames, the same clips for all."""
    rng = np.random.default_rng(seed)
    seconds = dict.fromkeys(videos, 0.0)
    for number in range(num_clips):
        frames = train_frames(num_frames, clip_len=32, frame_interval=2, rng=rng)
        least = dict.fromkeys(videos, float("inf"))
        for attempt in range(tries):
            for name in _turn(list(videos), number + attempt):
                before = time.process_time()
                decord.VideoReader(io.BytesIO(videos[name]), num_threads=1).get_batch(frames).asnumpy()
                least[name] = min(least[name], time.process_time() - before)
        for name in videos:
            seconds[name] += least[name] / num_clips
    return seconds


def table(figures: dict[str, dict[str, Figures]], ours: str) -> str:
    """Absolute values of both, the four ratios, and whether each keeps its limit."""
    rows = [("", "ours", "usual", "ratio", "least .. largest", "limit", "")]
    units = {"cpu": "CPU seconds a clip", "ssim": "SSIM", "size": "kB a clip", "decode": "decoding, CPU ms a 32x2 clip"}
    shown = {"cpu": "{:.3f}", "ssim": "{:.5f}", "size": "{:.0f}", "decode": "{:.1f}"}
    ratios = four_ratios(figures, ours)
    for key, unit in units.items():
        mine, theirs = (np.median(_sums(figures, way, key)) / len(figures) for way in (ours, USUAL))
        values, limit = ratios[key], LIMITS[key]
        form = "{:+.5f}" if key == "ssim" else "{:.3f}"
        spread = "" if len(set(values)) == 1 else f"{form.format(min(values))} .. {form.format(max(values))}"
        sign = "at most" if key in ("cpu", "size") else "at least"
        verdict = "met" if _is_met(key, values) else "not met"
        rows.append(
            (
                unit,
                *(shown[key].format(value) for value in (mine, theirs)),
                form.format(np.median(values)),
                spread,
                f"{sign} {limit:g}",
                verdict,
            )
        )
    if not shutil.which("ffprobe"):
        rows[0] = ("(no ffprobe: its probe costs nothing)", *rows[0][1:])
    return _columns(rows)


def lines(figures: dict[str, dict[str, Figures]], ways: Iterable[str]) -> str:
    """One way a line, with its four ratios."""
    rows = [("", "CPU", "SSIM", "size", "decoding", "limits")]
    for way in ways:
        ratios = four_ratios(figures, way)
        missed = [key for key, values in ratios.items() if not _is_met(key, values)]
        cpu, ssim, size, decode = (np.median(ratios[key]) for key in LIMITS)
        verdict = f"misses {', '.join(missed)}" if missed else "all met"
        rows.append((way, f"{cpu:.3f}", f"{ssim:+.5f}", f"{size:.3f}", f"{decode:.3f}", verdict))
    return _columns(rows)


def four_ratios(figures: dict[str, dict[str, Figures]], ours: str) -> dict[str, list[float]]:
    """Ours over usual, once per repeat; of decoding the speeds, of SSIM the difference."""
    both = {key: (_sums(figures, ours, key), _sums(figures, USUAL, key)) for key in LIMITS}
    ratios = {key: list(mine / usual) for key, (mine, usual) in both.items()}
    ratios["decode"] = [1 / ratio for ratio in ratios["decode"]]
    ratios["ssim"] = list((both["ssim"][0] - both["ssim"][1]) / len(figures))
    return ratios


def machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"ffmpeg {ffmpeg_version()}, decord {decord.__version__}, {cores} cores of {name}{load}"


class _Incomparable(Exception):
    """A clip that the two ways make different things of, and why."""


# what the scaler gives, without loss; of 8 bits, as both ways encode
_LOSSLESS = ("-an", "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-qp", "0")


def _all_clips(places: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for place in places:
        if not place.exists():
            raise UserError(f"{place} is not there; give files or folders of videos, or tar archives of them")
        paths = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in paths:
            if path.name.lower().endswith(ARCHIVES) and path.stat().st_size:
                yield from read_archive(path)
            elif path.suffix.lower() in VIDEOS or path == place:
                yield path.name, path.read_bytes()


def _settings(way: Way) -> tuple:
    return way.encode, way.scaler, way.extra


def _is_wide(source: Path) -> bool:
    video = cv2.VideoCapture(str(source))
    try:
        return video.get(cv2.CAP_PROP_FRAME_WIDTH) > video.get(cv2.CAP_PROP_FRAME_HEIGHT)
    finally:
        video.release()


def _turn(names: list[str], by: int) -> list[str]:
    """Who was first is last the next time."""
    by %= len(names)
    return names[by:] + names[:by]


def _cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _transcode(data: bytes, encode: Encode, short_side: int, scratch: Path) -> Encoded:
    try:
        return transcode(data, short_side=short_side, encode=encode, timeout_seconds=TIMEOUT_SECONDS, scratch=scratch)
    except BadVideo as error:
        raise _Incomparable(str(error)) from None


@contextlib.contextmanager
def _beside_params(way: Way) -> Iterator[None]:
    """For sweeps: knobs that are constants of the module, turned for a moment."""
    h264 = module._h264
    with contextlib.ExitStack() as stack:
        if way.extra:
            stack.enter_context(mock.patch.object(module, "_h264", lambda encode: h264(encode) | way.extra))
        if way.scaler:
            stack.enter_context(mock.patch.object(module, "_SCALER", way.scaler))
        yield


def _ffmpeg(*arguments: str | Path, loud: bool = False) -> str:
    """What ffmpeg said. Raises _Incomparable."""
    command = [find_ffmpeg(), "-hide_banner", "-nostdin", "-y", *([] if loud else ["-loglevel", "error"]), *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise _Incomparable(f"ffmpeg fails on it: {' '.join(said.split())[-200:]}")
    return said


def _same_shape(videos: dict[str, bytes]) -> int:
    """The number of frames of all. Raises _Incomparable: the usual way enlarges, and may drop frames."""
    shapes = {}
    for name, video in videos.items():
        reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
        shapes[name] = (len(reader), *reader[0].shape[:2])
    usual = shapes[USUAL]
    for name, shape in shapes.items():
        if shape != usual:
            raise _Incomparable(f"frames, height and width are {shape} after {name}, {usual} after {USUAL}")
    return usual[0]


def _sums(figures: dict[str, dict[str, Figures]], way: str, key: str) -> np.ndarray:
    """Over all clips, one per repeat; one in all where repeats cannot differ."""
    of = [ways[way] for ways in figures.values()]
    match key:
        case "cpu":
            return np.sum([one.cpu_seconds for one in of], axis=0)
        case "decode":
            return np.sum([one.decode_seconds for one in of], axis=0) * 1000
        case "size":
            return np.array([sum(one.size_bytes for one in of) / 1000])
        case _:
            return np.array([sum(one.ssim for one in of)])


def _is_met(key: str, values: list[float]) -> bool:
    median = np.median(values)
    return bool(median <= LIMITS[key] if key in ("cpu", "size") else median >= LIMITS[key])


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in (0, len(widths) - 1) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
