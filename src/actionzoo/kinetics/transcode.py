"""Videos in, short-side videos or JPEGs out: the one place that runs ffmpeg.

ffmpeg-python composes the commands; we run them, since it knows no time limit and keeps all of ffmpeg's complaints.
No name from an archive ever reaches a command line: sources lie in scratch under names of ours.
"""

import contextlib
import dataclasses
import functools
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import ffmpeg
import numpy as np

from ..errors import UserError
from .ffmpeg_process import BadVideo as BadVideo
from .ffmpeg_process import Clip, Result, process_clip, reason_of

# ffmpeg's own default, said so that it stays: the pixels that the usual way gives. `area` would save a tenth of the
# CPU time, and look less like them (docs/transcode.md)
_SCALER = "bicubic"
# likeness to the source, not what an eye takes for detail: at equal SSIM 3 % smaller (docs/transcode.md)
_X264_PARAMS = "psy=0"

MAX_FRAME_PIXELS = 8192 * 8192
"""Larger frames are refused: they take seconds and gigabytes each."""

FIXED = (_SCALER, _X264_PARAMS)
"""What no parameter says of how clips are encoded: shards that were made with another one are made anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """How H.264 is encoded; as shipped for quick decoding at any frame."""

    crf: int = 21
    preset: str = "veryfast"
    gop: int = 16
    """Frames from one keyframe to the next, at most."""
    bframes: int = 0
    tune: str = "fastdecode"
    """x264's; `none` for none."""


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
    """An mp4 file, and what is in it."""

    data: bytes = dataclasses.field(repr=False)
    num_frames: int
    """Frames that were really decoded and encoded."""
    width: int
    height: int
    fps: float
    """Frames per second, on average where they vary."""
    damage: str = ""
    """What ffmpeg complained of while it decoded; '' for a clip without a fault."""


@dataclasses.dataclass(frozen=True)
class Jpegs:
    """Frames of a video, each a JPEG file."""

    frames: list[bytes] = dataclasses.field(repr=False)
    damage: str = ""
    """What ffmpeg complained of while it decoded; '' for a video without a fault."""


def transcode(
    source: bytes | Path,
    *,
    short_side: int,
    encode: EncodeSettings,
    timeout_seconds: float,
    scratch: Path | None = None,
    span: tuple[float, float] | None = None,
) -> Encoded:
    """Scale to `short_side` pixels, as seen: a phone's rotation is applied to the pixels first.

    Never enlarges; sizes are even; every source frame is kept, with its time; sound is dropped. Equal sources give
    equal bytes with the same ffmpeg. `span` is where to start, and how long a part to take, in seconds; None for all.
    Raises BadVideo or MachineFault.
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
    """Every frame as a JPEG, `qscale` 2 (best) to 31; or the `wanted` ones, by number, ascending, each once.

    Raises BadVideo or MachineFault.
    """

    def work(clip: Clip) -> Jpegs:
        out = clip.folder / "out.mjpeg"
        # JPEG means BT.601 at full range; a video says itself what it means, often BT.709 at a limited one. Converted
        # here, so that a frame has the colours that decord gives it from the video
        video = _input(clip.source)
        if wanted is not None:
            video = video.filter("select", _any_of([f"eq(n,{number})" for number in wanted]))
        video = video.filter("scale", flags=_SCALER, out_color_matrix="bt601", out_range="pc")
        jpeg = {"c:v": "mjpeg", "qscale:v": qscale, "pix_fmt": "yuvj420p", "f": "mjpeg"}
        complaint = clip.run(_command(video.output(str(out), **jpeg, **_every_frame(), **_SAME_BYTES)))
        if not out.is_file():
            raise BadVideo(reason_of(complaint))
        # within the entropy-coded data 0xff is followed by 0x00 or a restart marker: this is the seam of two files
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
    """What a video is like, before anything is done to it."""

    duration_seconds: float
    """To the end of the last frame that is really in the file, whatever its header says."""
    audio: tuple[str, ...]
    """ffmpeg's name of each sound track's codec."""
    video: str = ""
    """ffmpeg's name of the picture's codec, e.g. h264."""


def measure(source: bytes | Path, *, timeout_seconds: float, scratch: Path | None = None) -> Measures:
    """Read the file through without decoding it. Raises BadVideo or MachineFault."""

    def work(clip: Clip) -> Measures:
        out = clip.folder / "packets"
        # a line for each packet, behind some on each track; framecrc is for tests, and says just what is asked here
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
    scratch: Path | None = None,
) -> None:
    """A copy of the video as mp4 with pictures on it, each a PNG of one size and the second until which it is shown;
    the last one stays to the end.

    Size, times of frames and sound stay; tracks of sound that mp4 players do not know become AAC. Raises BadVideo or
    MachineFault.
    """
    is_odd = any(side % 2 for side in shown_size(source, timeout_seconds=timeout_seconds, scratch=scratch))
    audio = measure(source, timeout_seconds=timeout_seconds, scratch=scratch).audio

    def work(clip: Clip) -> None:
        folder = clip.folder
        lines, shown_from = ["ffconcat version 1.0"], 0.0
        for number, (png, until) in enumerate(pictures):
            (folder / f"{number}.png").write_bytes(png)
            lines += [f"file {number}.png", f"duration {max(until - shown_from, 0):.6f}"]
            shown_from = until
        (folder / "pictures.ffconcat").write_text("\n".join([*lines[:-1], ""]))
        above = ffmpeg.input(str(folder / "pictures.ffconcat"), f="concat", protocol_whitelist="file")
        # colours at half the size, as players want them, cannot be had of an odd size
        subsampling = "yuv444" if is_odd else "yuv420"
        whole = _source(clip.source, threads=0)
        drawn = whole["V:0"].overlay(above, x=left, y=top, format=subsampling)
        coded = {"c:v": "libx264", "crf": 18, "preset": "veryfast", "pix_fmt": f"{subsampling}p"}
        sound = {"c:a": "copy"} if set(audio) <= _MP4_AUDIO else {"c:a": "aac", "b:a": "192k"}
        there = {"f": "mp4", "movflags": "+faststart"}
        made = ffmpeg.output(drawn, whole["a?"], str(out), **coded, **sound, **there, **_every_frame())
        clip.run(_command(made))

    _process(source, work, timeout_seconds, scratch)


def from_frames(
    frames: np.ndarray,
    *,
    fps: float,
    encode: EncodeSettings,
    hold_every: int = 0,
    timeout_seconds: float = 60,
    scratch: Path | None = None,
) -> bytes:
    """uint8 RGB (num_frames, height, width, 3), even sizes, as an mp4 file.

    With `hold_every` every so manyeth frame stays twice as long: a variable rate, as phones film in the dark.
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
    """Mark an mp4 file as to be turned by 90, 180 or 270 degrees, counter-clockwise, as phones do.

    Its pixels stay as they are: what changes is the matrix in the track's header (ISO/IEC 14496-12, 8.3.2).
    """
    data = bytearray(source)
    header = _box(data, "moov", "trak", "tkhd")
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    # x' = a x + c y, y' = b x + d y with y pointing down; stored as a b u, c d v
    struct.pack_into(">6i", header, 52 if header[0] == 1 else 40, cos * one, -sin * one, 0, sin * one, cos * one, 0)
    return bytes(data)


@functools.cache
def find_ffmpeg() -> str:
    """The program: from PATH if it encodes H.264, else the one of imageio-ffmpeg. Raises UserError if there is none."""
    on_path = shutil.which("ffmpeg")
    if on_path and _encodes_h264(on_path):
        return on_path
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        found = f"{on_path} has no libx264" if on_path else "there is no ffmpeg on PATH"
        raise UserError(f"{found}, and imageio-ffmpeg carries none for this machine; install ffmpeg") from None


@functools.cache
def ffmpeg_version() -> str:
    """As the program itself says: 7.1.1, n9.0.2-17-g2a571b6068, N-109468-gd39b34123d."""
    said = subprocess.run([find_ffmpeg(), "-version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return said.split()[2]


def _encodes_h264(program: str) -> bool:
    said = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, timeout=60, check=False).stdout
    return b"libx264" in said


_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# no version, no clock in the output
_SAME_BYTES = {"flags": "+bitexact", "fflags": "+bitexact"}
# a playlist that calls itself .mp4 must not make us read other files or call out
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif"


_MP4_AUDIO = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}


def _input(path: Path, span: tuple[float, float] | None = None):
    """The first video stream that is no cover picture."""
    return _source(path, span)["V:0"]


def _source(path: Path, span: tuple[float, float] | None = None, threads: int = 1):
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
    """One expression of ffmpeg's, whose sums may not have more than some 100 parts."""
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


def _command(stream) -> list[str]:
    return ffmpeg.compile(stream, cmd=[find_ffmpeg(), "-hide_banner", "-nostdin", "-v", "error", "-y"])


def _process(
    source: bytes | Path, work: Callable[[Clip], Result], timeout_seconds: float, scratch: Path | None
) -> Result:
    return process_clip(source, work, timeout_seconds=timeout_seconds, scratch=scratch, control=_control)


def _control(folder: Path) -> list[str]:
    """Two frames at 4K, encoded as clips are: what a machine with room for our clips can do."""
    black = ffmpeg.input("/dev/zero", f="rawvideo", pix_fmt="yuv420p", s="3840x2160", framerate=25)
    return _command(black.output(str(folder / "control.mp4"), **{"frames:v": 2}, **_h264(Encode())))


def _describe(data: bytes, damage: str) -> Encoded:
    """Read size, frames and duration off an mp4 file of ours, from its own tables (ISO/IEC 14496-12)."""
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
