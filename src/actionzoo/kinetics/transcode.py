"""Videos in, short-side videos or JPEGs out: the only module that composes ffmpeg's commands.

ffmpeg-python composes them; ffmpeg_process.py runs them, with a time limit and a bound on ffmpeg's messages. No name
from an archive reaches a command line: sources are in scratch under names of ours.
"""

import contextlib
import dataclasses
import functools
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ffmpeg
import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .ffmpeg_process import BadVideo as BadVideo
from .ffmpeg_process import Clip, Result, process_clip, reason_of

# ffmpeg's default, spelled out so that it stays. `area` would save a tenth of the CPU time, with other pixels
# (docs/transcode.md)
_SCALER = "bicubic"
# no psychovisual optimisation: 3 % smaller at equal SSIM (docs/transcode.md)
_X264_PARAMS = "psy=0"

MAX_FRAME_PIXELS = 8192 * 8192
"""Larger frames are refused: they take seconds and gigabytes each."""

FIXED = (_SCALER, _X264_PARAMS)
"""Settings of the encoding that are no parameters. Shards that were made with other ones are made anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """Settings of the H.264 encoder; the defaults are for quick decoding from any frame."""

    crf: int = 21
    preset: str = "veryfast"
    gop: int = 16
    """Largest number of frames from one keyframe to the next."""
    bframes: int = 0
    tune: str = "fastdecode"
    """x264's tuning; `none` for none."""


class EncodeSettings(Protocol):
    """Encode, or a section of params.yaml with the same fields."""

    @property
    def crf(self) -> int: ...

    @property
    def preset(self) -> str: ...

    @property
    def gop(self) -> int: ...

    @property
    def bframes(self) -> int: ...

    @property
    def tune(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """An mp4 file and its properties."""

    data: bytes = dataclasses.field(repr=False)
    num_frames: int
    """Frames that were decoded and encoded, whatever the source claims."""
    width: int
    height: int
    fps: float
    """Frames per second, on average where they vary."""
    damage: str = ""
    """ffmpeg's messages while it decoded; '' for a sound clip."""


@dataclasses.dataclass(frozen=True)
class Jpegs:
    """Frames of a video, each a JPEG file."""

    frames: list[bytes] = dataclasses.field(repr=False)
    damage: str = ""
    """ffmpeg's messages while it decoded; '' for a sound video."""


def transcode(
    source: bytes | Path,
    *,
    short_side: int,
    encode: EncodeSettings,
    timeout_seconds: float,
    scratch: Path | None = None,
    span: tuple[float, float] | None = None,
) -> Encoded:
    """Encode the video anew with a short side of `short_side` pixels; a phone's rotation is applied first.

    Never enlarges. Sizes are even, every source frame keeps its time, sound is dropped. Equal sources give equal bytes
    with the same ffmpeg. `span` is (start, duration) in seconds, None for the whole video. Raises BadVideo or
    MachineFault.
    """

    def work(clip: Clip) -> Encoded:
        shown = "min(iw,ih)"
        # both sides by one rule: scaled by min(short_side, shown) / shown, rounded to even, never above the source
        side = f"min(2*trunc(%s/2),2*round(%s*min({short_side},{shown})/({shown})/2))"
        video = _input(clip.source, span).filter(
            "scale", w=side.replace("%s", "iw"), h=side.replace("%s", "ih"), flags=_SCALER, out_range="tv"
        )
        out = clip.folder / "out.mp4"
        complaint = clip.run(_command(video.output(str(out), map_metadata=-1, **_every_frame(), **_h264(encode))))
        if not out.is_file():
            raise BadVideo(reason_of(complaint))
        return _describe(out.read_bytes(), damage=reason_of(complaint) if complaint else "")

    return _process(source, work, timeout_seconds, scratch)


def to_jpegs(
    source: bytes | Path,
    *,
    qscale: int,
    timeout_seconds: float,
    scratch: Path | None = None,
    wanted: Sequence[int] | None = None,
) -> Jpegs:
    """Every frame as a JPEG of quality `qscale`, 2 (best) to 31; or the `wanted` frame numbers, ascending, each once.

    Raises BadVideo or MachineFault.
    """

    def work(clip: Clip) -> Jpegs:
        out = clip.folder / "out.mjpeg"
        # JPEG is BT.601 at full range; a video declares its own, often BT.709 at limited range. The conversion gives a
        # frame the colours that decord gives it from the video
        video = _input(clip.source)
        if wanted is not None:
            video = video.filter("select", _any_of([f"eq(n,{number})" for number in wanted]))
        video = video.filter("scale", flags=_SCALER, out_color_matrix="bt601", out_range="pc")
        jpeg = {"c:v": "mjpeg", "qscale:v": qscale, "pix_fmt": "yuvj420p", "f": "mjpeg"}
        complaint = clip.run(_command(video.output(str(out), **jpeg, **_every_frame(), **_SAME_BYTES)))
        if not out.is_file():
            raise BadVideo(reason_of(complaint))
        # in entropy-coded data 0xff is followed by 0x00 or a restart marker, so end + start only occur between files
        files = out.read_bytes().split(_JPEG_END + _JPEG_START)
        last = len(files) - 1
        frames = [
            (b"" if number == 0 else _JPEG_START) + data + (b"" if number == last else _JPEG_END)
            for number, data in enumerate(files)
        ]
        return Jpegs(frames, damage=reason_of(complaint) if complaint else "")

    return _process(source, work, timeout_seconds, scratch)


@dataclasses.dataclass(frozen=True)
class Measures:
    """Properties of a video, read without decoding it."""

    duration_seconds: float
    """To the end of the last frame in the file, whatever its header claims."""
    audio: tuple[str, ...]
    """ffmpeg's name of each sound track's codec."""
    video: str = ""
    """ffmpeg's name of the picture's codec, e.g. h264."""


def measure(source: bytes | Path, *, timeout_seconds: float, scratch: Path | None = None) -> Measures:
    """Read the file through without decoding it. Raises BadVideo or MachineFault."""

    def work(clip: Clip) -> Measures:
        out = clip.folder / "packets"
        # framecrc writes some lines for each track, then one for each packet
        command = ffmpeg.output(_input(clip.source), _source(clip.source)["a?"], str(out), c="copy", f="framecrc")
        complaint = clip.run(_command(command))
        video, audio, tick, end = "", [], 0.0, 0.0
        with open(out, encoding="ascii") if out.is_file() else contextlib.nullcontext(()) as lines:
            for number, line in enumerate(lines):
                if number % 1000 == 0:
                    clip.check_time()
                if line.startswith("#tb 0:"):
                    ticks, per_seconds = line.split()[-1].split("/")
                    tick = int(ticks) / int(per_seconds)
                elif line.startswith("#codec_id 0:"):
                    video = line.split()[-1]
                elif line.startswith("#codec_id "):
                    audio.append(line.split()[-1])
                elif line.startswith("0,"):
                    times = [int(text) for text in line.split(",")[1:4] if re.fullmatch(r" *-?\d+", text)]
                    end = max(end, *((time + times[-1]) * tick for time in times[:-1] if abs(time) < 2**62), 0.0)
        if not end:
            raise BadVideo(reason_of(complaint))
        return Measures(end, tuple(audio), video)

    return _process(source, work, timeout_seconds, scratch)


def shown_size(source: Path, *, timeout_seconds: float, scratch: Path | None = None) -> tuple[int, int]:
    """(height, width) of the first frame as it is shown, a phone's rotation applied. Raises BadVideo or
    MachineFault."""

    def work(clip: Clip) -> tuple[int, int]:
        out = clip.folder / "first.ppm"
        picture = {"c:v": "ppm", "f": "image2pipe", "frames:v": 1}
        complaint = clip.run(_command(_input(clip.source).output(str(out), **picture)))
        header = out.read_bytes()[:64].split() if out.is_file() else []
        if len(header) < 3:
            raise BadVideo(reason_of(complaint))
        return int(header[2]), int(header[1])

    return _process(source, work, timeout_seconds, scratch)


def lay_over(
    source: Path,
    pictures: Sequence[tuple[bytes, float]],
    out: Path,
    *,
    left: int,
    top: int,
    timeout_seconds: float,
) -> None:
    """Write a copy of the video as mp4 with pictures on it.

    `pictures` are PNGs of one size, each with the second until which it is shown; the last one stays to the end. Size,
    times of frames and sound stay; sound that mp4 players do not support becomes AAC. Raises BadVideo or MachineFault.
    """
    is_odd = any(side % 2 for side in shown_size(source, timeout_seconds=timeout_seconds))
    audio = measure(source, timeout_seconds=timeout_seconds).audio

    def work(clip: Clip) -> None:
        folder = clip.folder
        lines, shown_from = ["ffconcat version 1.0"], 0.0
        for number, (png, until) in enumerate(pictures):
            (folder / f"{number}.png").write_bytes(png)
            lines += [f"file {number}.png", f"duration {max(until - shown_from, 0):.6f}"]
            shown_from = until
        (folder / "pictures.ffconcat").write_text("\n".join([*lines[:-1], ""]))
        above = ffmpeg.input(str(folder / "pictures.ffconcat"), f="concat", protocol_whitelist="file")
        # players want chroma at half the size, which an odd size does not have
        subsampling = "yuv444" if is_odd else "yuv420"
        whole = _source(clip.source, threads=0)
        drawn = whole["V:0"].overlay(above, x=left, y=top, format=subsampling)
        coded = {"c:v": "libx264", "crf": 18, "preset": "veryfast", "pix_fmt": f"{subsampling}p"}
        sound = {"c:a": "copy"} if set(audio) <= _MP4_AUDIO else {"c:a": "aac", "b:a": "192k"}
        there = {"f": "mp4", "movflags": "+faststart"}
        made = ffmpeg.output(drawn, whole["a?"], str(out), **coded, **sound, **there, **_every_frame())
        clip.run(_command(made))

    _process(source, work, timeout_seconds, None)


def from_frames(
    frames: npt.NDArray[np.uint8],
    *,
    fps: float,
    encode: EncodeSettings,
    hold_every: int = 0,
    timeout_seconds: float = 60,
    scratch: Path | None = None,
) -> bytes:
    """An mp4 file of the frames: uint8 RGB (num_frames, height, width, 3), height and width even.

    With `hold_every=n` every n-th frame is shown twice as long: a variable frame rate, as of phones in the dark.
    """
    _, height, width, _ = frames.shape

    def work(clip: Clip) -> bytes:
        video = ffmpeg.input(str(clip.source), f="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
        if hold_every:
            video = video.filter("setpts", f"(N+floor(N/{hold_every}))/(FRAME_RATE*TB)")
        out = clip.folder / "out.mp4"
        clip.run(_command(video.output(str(out), **_every_frame(), **_h264(encode))))
        return out.read_bytes()

    return _process(frames.tobytes(), work, timeout_seconds, scratch)


def rotate(source: bytes, degrees: int) -> bytes:
    """The mp4 file with a mark that players rotate it by 90, 180 or 270 degrees counter-clockwise, as phones write it.

    The pixels stay; the matrix in the track's header changes (ISO/IEC 14496-12, 8.3.2).
    """
    data = bytearray(source)
    header = _box(data, "moov", "trak", "tkhd")
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    # x' = a x + c y, y' = b x + d y with y pointing down; stored as a b u, c d v
    struct.pack_into(">6i", header, 52 if header[0] == 1 else 40, cos * one, -sin * one, 0, sin * one, cos * one, 0)
    return bytes(data)


def _computed_once(function: Callable[[], str]) -> Callable[[], str]:
    """functools.cache for threads that ask at the same time: the others wait for the first one's answer."""
    cached, lock = functools.cache(function), threading.RLock()

    @functools.wraps(function)
    def answer() -> str:
        with lock:
            return cached()

    return answer


@_computed_once
def find_ffmpeg() -> str:
    """Path of ffmpeg: from PATH if it encodes H.264, otherwise that of imageio-ffmpeg. Raises UserError."""
    on_path = shutil.which("ffmpeg")
    if on_path and _encodes_h264(on_path):
        return on_path
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        found = f"{on_path} has no libx264" if on_path else "there is no ffmpeg on PATH"
        raise UserError(f"{found}, and imageio-ffmpeg carries none for this machine; install ffmpeg") from None


@_computed_once
def ffmpeg_version() -> str:
    """The version that the program prints: 7.1.1, n9.0.2-17-g2a571b6068, N-109468-gd39b34123d."""
    output = subprocess.run([find_ffmpeg(), "-version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return output.split()[2]


def _encodes_h264(program: str) -> bool:
    command = [program, "-hide_banner", "-encoders"]
    return b"libx264" in subprocess.run(command, capture_output=True, timeout=60, check=False).stdout


Stream = Any
"""A node of ffmpeg-python, which has no types."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# no version, no clock in the output
_SAME_BYTES = {"flags": "+bitexact", "fflags": "+bitexact"}
# a playlist named .mp4 must not make ffmpeg read other files or open connections
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif"


_MP4_AUDIO = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}


def _input(path: Path, span: tuple[float, float] | None = None) -> Stream:
    """The first video stream that is no cover picture."""
    return _source(path, span)["V:0"]


def _source(path: Path, span: tuple[float, float] | None = None, threads: int = 1) -> Stream:
    part = {} if span is None else {"ss": f"{span[0]:.6f}", "t": f"{span[1]:.6f}"}
    return ffmpeg.input(
        str(path),
        protocol_whitelist="file",
        format_whitelist=_CONTAINERS,
        max_pixels=MAX_FRAME_PIXELS,
        threads=threads,
        **part,
    )


def _any_of(conditions: Sequence[str]) -> str:
    """One expression of ffmpeg, whose sums may have about 100 terms at most."""
    while len(conditions) > 50:
        conditions = [f"({'+'.join(conditions[start : start + 50])})" for start in range(0, len(conditions), 50)]
    return "+".join(conditions)


def _every_frame() -> dict[str, object]:
    """Each decoded frame once, at its own time (to 1/90000 s, the clock of MPEG), also where the rate varies."""
    version = re.match(r"n?(\d+)\.(\d+)", ffmpeg_version())
    is_old = version is not None and (int(version[1]), int(version[2])) < (5, 1)
    return {"vsync" if is_old else "fps_mode": "passthrough", "enc_time_base": "1/90000"}


def _h264(encode: EncodeSettings) -> dict[str, object]:
    options: dict[str, object] = {
        "c:v": "libx264",
        "crf": encode.crf,
        "preset": encode.preset,
        "g": encode.gop,
        "bf": encode.bframes,
        "pix_fmt": "yuv420p",
        # as many clips at once as there are cores: one thread each, and the same bytes on every machine
        "threads": 1,
        "x264-params": _X264_PARAMS,
        **_SAME_BYTES,
    }
    return options if encode.tune == "none" else options | {"tune": encode.tune}


def _command(stream: Stream) -> list[str]:
    command: list[str] = ffmpeg.compile(stream, cmd=[find_ffmpeg(), "-hide_banner", "-nostdin", "-v", "error", "-y"])
    return command


def _process(
    source: bytes | Path, work: Callable[[Clip], Result], timeout_seconds: float, scratch: Path | None
) -> Result:
    return process_clip(source, work, timeout_seconds=timeout_seconds, scratch=scratch, control=_control)


def _control(folder: Path) -> list[str]:
    """The command of the control: two frames at 4K, encoded as clips are."""
    black = ffmpeg.input("/dev/zero", f="rawvideo", pix_fmt="yuv420p", s="3840x2160", framerate=25)
    return _command(black.output(str(folder / "control.mp4"), **{"frames:v": 2}, **_h264(Encode())))


def _describe(data: bytes, damage: str) -> Encoded:
    """Size, frames and rate of an mp4 file of ours, from its tables (ISO/IEC 14496-12)."""
    media = ("moov", "trak", "mdia")
    try:
        times = _box(data, *media, "mdhd")
        timescale, duration = struct.unpack_from(*((">IQ", times, 20) if times[0] == 1 else (">II", times, 12)))
        # skip version, entry count and the entry's own header; then 24 bytes into a VisualSampleEntry
        width, height = struct.unpack_from(">HH", _box(data, *media, "minf", "stbl", "stsd"), 8 + 8 + 24)
        (num_frames,) = struct.unpack_from(">I", _box(data, *media, "minf", "stbl", "stsz"), 8)
    except (KeyError, struct.error):
        raise BadVideo(damage or "no frame could be decoded") from None
    if num_frames == 0:
        raise BadVideo(damage or "no frame could be decoded")
    fps = round(num_frames * timescale / duration, 3) if duration else 0.0
    return Encoded(data=data, num_frames=num_frames, width=width, height=height, fps=fps, damage=damage)


def _box(data: bytes | bytearray | memoryview, *names: str) -> memoryview:
    """The contents of the first box under the given path of names. Raises KeyError."""
    if not names:
        return memoryview(data)
    view, start = memoryview(data), 0
    while start + 8 <= len(view):
        size, name = struct.unpack_from(">I4s", view, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", view, start + 8), 16
        if name == names[0].encode():
            return _box(view[start + header : start + size], *names[1:])
        start += max(size, header)
    raise KeyError(names[0])
