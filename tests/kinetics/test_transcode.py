"""Clips as they come, through ffmpeg."""

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import ffmpeg
import numpy as np
import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics import transcode as module
from actionzoo.kinetics.transcode import (
    BadVideo,
    Encode,
    Encoded,
    find_ffmpeg,
    from_frames,
    measure,
    rotate,
    shown_size,
    to_jpegs,
    transcode,
)
from actionzoo.params import load_params
from tests.kinetics.small_films import QUICK, film, picture

PROJECT = Path(__file__).resolve().parents[2]


def resized(source: bytes | Path, short_side: int = 64, timeout_seconds: float = 60, **options) -> Encoded:
    return transcode(source, short_side=short_side, encode=Encode(), timeout_seconds=timeout_seconds, **options)


def decode(data: bytes) -> np.ndarray:
    """uint8 RGB (num_frames, height, width, 3), by decord: what the loader will see."""
    import decord

    return decord.VideoReader(io.BytesIO(data), num_threads=1)[:].asnumpy()


def run_ffmpeg(path: Path, *arguments: str) -> bytes:
    subprocess.run([find_ffmpeg(), "-v", "error", "-y", *arguments, str(path)], check=True)
    return path.read_bytes()


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (90, 120, (64, 86)),  # 85.3 to the nearest even number
        (120, 90, (86, 64)),
        (90, 90, (64, 64)),
        (66, 500, (64, 484)),
    ],
)
def test_the_short_side_is_scaled_whichever_it_is(height, width, expected):
    encoded = resized(film(height=height, width=width))
    assert (encoded.height, encoded.width) == expected
    assert decode(encoded.data).shape[1:3] == expected


@pytest.mark.parametrize("short_side", [90, 92, 256])
def test_a_small_clip_is_not_enlarged(short_side):
    encoded = resized(film(height=90, width=120), short_side)
    assert (encoded.height, encoded.width) == (90, 120)


def test_an_odd_size_is_made_even_by_shrinking(tmp_path):
    odd = run_ffmpeg(
        tmp_path / "odd.mp4", "-f", "lavfi", "-i", "testsrc2=size=121x91:duration=1", "-pix_fmt", "yuv444p"
    )
    encoded = resized(odd, 256)
    assert (encoded.height, encoded.width) == (90, 120)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_phones_clip_is_scaled_and_shown_upright(degrees):
    """The phone stores the picture turned clockwise, and how to turn it back."""
    lying = np.repeat(np.rot90(picture(120, 90), k=-degrees // 90)[None], 5, axis=0)
    encoded = resized(rotate(from_frames(np.ascontiguousarray(lying), fps=25, encode=QUICK), degrees))
    assert (encoded.height, encoded.width) == (86, 64)
    seen = decode(encoded.data)[0].astype(int)
    wanted = cv2.resize(picture(120, 90), (64, 86)).astype(int)
    assert np.abs(seen - wanted).mean() < 8


@pytest.mark.parametrize("short_side", [64, 256])
def test_a_turned_clip_is_turned_once(short_side):
    """What we write says nothing of turning any more, whether the clip was scaled or stayed as it was."""
    encoded = resized(rotate(film(height=90, width=120), 90), short_side)
    assert (encoded.height, encoded.width) == {64: (86, 64), 256: (120, 90)}[short_side]
    matrix = bytes(module._box(encoded.data, "moov", "trak", "tkhd")[40:76])
    assert np.frombuffer(matrix, ">i4").tolist() == [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]


def test_pixels_keep_their_colours():
    encoded = resized(film(num_frames=3))
    seen = decode(encoded.data)[0].astype(int)
    assert np.abs(seen - cv2.resize(picture(90, 120) // 2, (86, 64)).astype(int)).mean() < 6


@pytest.mark.parametrize("num_frames, fps", [(1, 25), (30, 25), (77, 30), (40, 30000 / 1001)])
def test_every_frame_is_kept_and_counted(num_frames, fps):
    encoded = resized(film(num_frames=num_frames, fps=fps))
    assert encoded.num_frames == len(decode(encoded.data)) == num_frames
    assert encoded.fps == pytest.approx(fps, abs=0.001)


@pytest.mark.parametrize("bframes", [0, 1, 3])
def test_a_variable_frame_rate_stays_as_it_is(bframes):
    """Every third frame lasts twice as long: 30 frames take the time of 40 (none knows how long the last one is)."""
    import decord

    source = film(num_frames=30, fps=30, hold_every=3)
    encoded = transcode(source, short_side=64, encode=Encode(bframes=bframes), timeout_seconds=60)
    assert encoded.num_frames == 30
    assert encoded.fps == pytest.approx(30 * 30 / 40, rel=0.04)
    before, after = (
        decord.VideoReader(io.BytesIO(data)).get_frame_timestamp(range(30))[:, 0] for data in (source, encoded.data)
    )
    assert after == pytest.approx(before, abs=1e-4)


def test_b_frames_and_sound_change_nothing(tmp_path):
    source = run_ffmpeg(
        tmp_path / "b.mp4",
        *("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25:duration=2", "-f", "lavfi", "-i", "sine=duration=2"),
        *("-bf", "3", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac"),
    )
    encoded = resized(source)
    assert encoded.num_frames == len(decode(encoded.data)) == 50
    assert b"mp4a" in source and b"mp4a" not in encoded.data


def test_sound_and_subtitles_are_left_out(tmp_path):
    (tmp_path / "said.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nOh!\n")
    source = run_ffmpeg(
        tmp_path / "all.mp4",
        *("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25:duration=1", "-f", "lavfi", "-i", "sine=duration=1"),
        *("-i", str(tmp_path / "said.srt"), "-c:v", "libx264", "-c:a", "aac", "-c:s", "mov_text"),
    )
    assert source.count(b"trak") == 3
    assert resized(source).data.count(b"trak") == 1


@pytest.mark.parametrize("bframes", [0, 1])
@pytest.mark.parametrize("gop", [4, 16])
def test_the_time_between_keyframes_is_bounded(gop, bframes):
    import decord

    encode = Encode(gop=gop, bframes=bframes)
    encoded = transcode(film(num_frames=40), short_side=64, encode=encode, timeout_seconds=60)
    keys = decord.VideoReader(io.BytesIO(encoded.data)).get_key_indices()
    assert np.diff([*keys, 40]).max() <= gop


@pytest.mark.parametrize("start", [0, 1, 17, 31, 38])
def test_any_frame_can_be_had_alone(start):
    """Whatever refers to whatever: out of order and from the middle, frames are what they are from the start on."""
    import decord

    data = resized(film(num_frames=40)).data
    frames = [start, 39, start // 2]
    alone = decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(frames).asnumpy()
    assert np.array_equal(alone, decode(data)[frames])


def x264_options(encode: Encode) -> dict[str, str]:
    """As x264 itself writes them into the stream."""
    data = transcode(film(num_frames=3), short_side=64, encode=encode, timeout_seconds=60).data
    text = data.partition(b"options: ")[2].partition(b"\0")[0].decode(errors="replace")
    return dict(option.partition("=")[::2] for option in text.split())


def test_what_is_shipped_is_easy_to_decode_and_works_on_one_core():
    """No arithmetic coding, no loop filter, no weighted prediction; and one thread, so that jobs do not crowd."""
    shipped = x264_options(load_params(PROJECT / "params.yaml").prepare.encode)
    wanted = {"cabac": "0", "deblock": "0:0:0", "weightp": "0", "ref": "1", "threads": "1", "lookahead_threads": "1"}
    assert {key: shipped[key] for key in wanted} == wanted


@pytest.mark.parametrize("tune", ["fastdecode", "none"])
def test_no_bits_are_spent_on_what_only_an_eye_would_like(tune):
    assert x264_options(Encode(tune=tune))["psy"] == "0"


@pytest.mark.parametrize(
    "encode, option, value",
    [
        (Encode(crf=30), "crf", "30.0"),
        (Encode(gop=7), "keyint", "7"),
        (Encode(bframes=2), "bframes", "2"),
        (Encode(preset="medium"), "subme", "7"),
        (Encode(tune="none"), "cabac", "1"),
        (Encode(tune="film"), "deblock", "1:-1:-1"),
    ],
)
def test_every_setting_reaches_the_encoder(encode, option, value):
    assert x264_options(encode)[option] == value
    assert x264_options(Encode())[option] != value


def test_the_settings_of_this_module_are_those_of_params():
    assert dataclasses.asdict(Encode()) == dataclasses.asdict(load_params(PROJECT / "params.yaml").prepare.encode)


def test_equal_sources_give_equal_bytes(tmp_path):
    source = film()
    (tmp_path / "file.mp4").write_bytes(source)
    assert resized(source) == resized(tmp_path / "file.mp4", scratch=tmp_path / "scratch")


def test_scratch_is_left_empty(tmp_path):
    resized(film(), scratch=tmp_path / "scratch")
    with pytest.raises(BadVideo):
        resized(b"nothing", scratch=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_zero_bytes_are_called_so():
    with pytest.raises(BadVideo, match=r"^zero bytes$"):
        resized(b"")


def test_a_clip_cut_off_before_its_table_of_contents_is_corrupt():
    source = film()
    with pytest.raises(BadVideo, match=r"^moov atom not found$"):
        resized(source[: len(source) // 2])


def test_a_clip_cut_off_after_its_table_of_contents_gives_what_there_is(tmp_path):
    (tmp_path / "a.mp4").write_bytes(film(num_frames=60))
    ahead = run_ffmpeg(tmp_path / "b.mp4", "-i", str(tmp_path / "a.mp4"), "-c", "copy", "-movflags", "+faststart")
    encoded = resized(ahead[: len(ahead) * 3 // 4])
    assert 0 < encoded.num_frames < 60
    assert encoded.num_frames == len(decode(encoded.data))
    assert encoded.damage == "cut off"


def test_noise_is_corrupt():
    with pytest.raises(BadVideo, match="Invalid data found"):
        resized(np.random.default_rng(0).bytes(50_000))


def test_sound_alone_is_no_video(tmp_path):
    sound = run_ffmpeg(tmp_path / "s.mp4", "-f", "lavfi", "-i", "sine=duration=1")
    with pytest.raises(BadVideo, match=r"^no video stream$"):
        resized(sound)


def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(film())
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    with pytest.raises(BadVideo):
        resized(playlist.encode())
    with pytest.raises(BadVideo):
        resized(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n".encode())


def test_a_clip_that_takes_too_long_is_given_up():
    source = film(num_frames=200, height=480, width=640)
    start = time.monotonic()
    with pytest.raises(BadVideo, match=r"^timed out after 0\.05 s$"):
        resized(source, 400, timeout_seconds=0.05)
    assert time.monotonic() - start < 5


def test_reasons_bear_no_paths_or_addresses(tmp_path):
    with pytest.raises(BadVideo) as error:
        resized(b"x" * 1000, scratch=tmp_path / "scratch")
    assert str(tmp_path) not in str(error.value) and "0x" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_no_ffmpeg_outlives_its_parent(tmp_path):
    """The parent is killed while an ffmpeg works; /proc is watched for what is left of it."""
    (tmp_path / "long.mp4").write_bytes(film(num_frames=250, height=480, width=640))
    program = (
        "import sys; from pathlib import Path; from actionzoo.kinetics.transcode import Encode, transcode\n"
        "folder, encode = Path(sys.argv[1]), Encode(preset='slow')\n"
        "transcode(folder / 'long.mp4', short_side=400, encode=encode, timeout_seconds=60, scratch=folder)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])

    def children() -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if entry.name.isdigit() and f"{tmp_path}/clip-" in (entry / "cmdline").read_text():
                    found.append(entry.name)
        return found

    deadline = time.monotonic() + 20
    while not children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children(), "no ffmpeg was ever seen"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children() == []


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Puts a program alone on PATH that answers to the name of ffmpeg."""

    def put(script: str) -> str:
        (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return str(tmp_path / "ffmpeg")

    return put


def test_ffmpeg_on_path_is_preferred(on_path):
    program = on_path("echo ' V....D libx264'")
    assert find_ffmpeg.__wrapped__() == program


def test_an_ffmpeg_that_cannot_encode_h264_is_passed_over(on_path):
    program = on_path("echo ' V....D mpeg4'")
    assert find_ffmpeg.__wrapped__() != program


def test_without_any_ffmpeg_the_user_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setattr("imageio_ffmpeg._utils._get_ffmpeg_exe", lambda: None)  # a machine it has no program for
    with pytest.raises(UserError, match=r"there is no ffmpeg on PATH.*install ffmpeg"):
        find_ffmpeg.__wrapped__()


@pytest.mark.parametrize("script", ["kill -KILL $$", "kill -TERM $$", "exit 255"])
def test_an_ffmpeg_that_was_killed_says_nothing_about_the_clip(on_path, monkeypatch, script):
    source = film(num_frames=5)
    program = on_path(script)
    monkeypatch.setattr(module, "find_ffmpeg", lambda: program)
    with pytest.raises(UserError, match="killed from outside"):
        resized(source)


def test_a_full_disk_says_nothing_about_the_clip(on_path, monkeypatch):
    source = film(num_frames=5)
    program = on_path("echo 'Error writing trailer: No space left on device' >&2; exit 228")
    monkeypatch.setattr(module, "find_ffmpeg", lambda: program)
    with pytest.raises(UserError, match="is full"):
        resized(source)


@pytest.mark.parametrize(
    "version, option",
    [
        ("4.4.2-0ubuntu0.22.04.1", "vsync"),
        ("5.0.1", "vsync"),
        ("5.1", "fps_mode"),
        ("n9.0.2-17-g2a", "fps_mode"),
        ("N-109468-gd39", "fps_mode"),
    ],
)
def test_the_option_of_old_ffmpegs_is_used_with_old_ffmpegs(monkeypatch, version, option):
    monkeypatch.setattr(module, "ffmpeg_version", lambda: version)
    assert module._every_frame()[option] == "passthrough"


def test_names_never_need_a_shell():
    """Composed commands are lists of arguments; a path is one of them, whatever it looks like."""
    stream = ffmpeg.input("-y; rm 'x'.mp4").output("out.mp4")
    assert "-y; rm 'x'.mp4" in ffmpeg.compile(stream)


def test_jpegs_are_the_videos_frames():
    encoded = resized(film(num_frames=20))
    jpegs = to_jpegs(encoded.data, qscale=2, timeout_seconds=60).frames
    assert len(jpegs) == 20
    for jpeg, frame in zip(jpegs, decode(encoded.data), strict=True):
        seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        assert np.abs(seen - frame).mean() < 3


@pytest.mark.parametrize("tag", ["bt709", "smpte170m"])
def test_jpegs_have_the_colours_that_decord_gives_the_video(tmp_path, tag):
    """Chroma far from grey, so that a wrong matrix (about 8 levels) or range (about 10) shows."""
    source = run_ffmpeg(
        tmp_path / "c.mp4",
        *("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=0.4", "-vf", f"scale=out_color_matrix={tag}"),
        *("-colorspace", tag, "-color_primaries", tag, "-color_trc", tag, "-pix_fmt", "yuv420p", "-crf", "10"),
    )
    encoded = resized(source, 256)
    frame = decode(encoded.data)[5].astype(int)
    jpeg = to_jpegs(encoded.data, qscale=2, timeout_seconds=60).frames[5]
    seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert np.abs(seen - frame).mean() < 4
    assert np.abs((seen - frame).mean(axis=(0, 1))).max() < 2


def test_a_lower_quality_makes_smaller_jpegs():
    video = resized(film(num_frames=3)).data
    best, worst = (sum(map(len, to_jpegs(video, qscale=q, timeout_seconds=60).frames)) for q in (2, 31))
    assert worst < best


# parts of videos, and videos as they are


@pytest.mark.parametrize("wanted", [[0], [3, 4, 17, 29], list(range(30)), list(range(0, 3000, 2))])
def test_wanted_frames_are_the_very_files_that_all_of_them_have(wanted):
    source = resized(film()).data
    everyone = to_jpegs(source, qscale=2, timeout_seconds=60).frames
    some = to_jpegs(source, qscale=2, timeout_seconds=60, wanted=wanted).frames
    assert some == [everyone[number] for number in wanted if number < 30]


@pytest.mark.parametrize(("span", "first", "count"), [((0, 0.4), 0, 10), ((0.48, 0.2), 12, 5), ((1.0, 9), 25, 5)])
def test_a_span_has_the_frames_of_its_time_also_amid_keyframes(tmp_path, span, first, count):
    path = tmp_path / "film.mp4"
    path.write_bytes(film(30))
    part, levels = resized(path, span=span), decode(resized(path).data).mean(axis=(1, 2, 3))
    assert part.num_frames == count
    np.testing.assert_allclose(decode(part.data).mean(axis=(1, 2, 3)), levels[first : first + count], atol=0.5)


def test_a_span_behind_the_end_has_no_picture(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(film(30))
    with pytest.raises(BadVideo, match="no frame could be decoded"):
        resized(path, span=(5.0, 1.0))


def test_the_length_is_that_of_what_is_there_and_not_what_the_header_says(tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mkv"
    whole.write_bytes(film(250))
    data = run_ffmpeg(cut, "-i", str(whole), "-c", "copy")
    assert measure(whole, timeout_seconds=60).duration_seconds == pytest.approx(10)
    assert measure(cut, timeout_seconds=60).duration_seconds == pytest.approx(10, abs=0.05)
    cut.write_bytes(data[: len(data) // 2])
    assert 3 < measure(cut, timeout_seconds=60).duration_seconds < 7
    cut.write_bytes(b"")
    with pytest.raises(BadVideo, match="zero bytes"):
        measure(cut, timeout_seconds=60)


def test_the_shown_size_is_that_of_a_turned_phone(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(rotate(film(3, height=90, width=120), 90))
    assert shown_size(path, timeout_seconds=60) == (120, 90)


def test_threads_that_ask_for_ffmpegs_version_at_once_start_it_once():
    code = """if True:
        import subprocess
        from concurrent.futures import ThreadPoolExecutor
        from actionzoo.kinetics.transcode import ffmpeg_version, find_ffmpeg
        find_ffmpeg()
        started, init = [], subprocess.Popen.__init__
        def counted(*arguments, **options):
            started.append(arguments)
            init(*arguments, **options)
        subprocess.Popen.__init__ = counted
        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(lambda _: ffmpeg_version(), range(8)))
        print(len(started), len(answers))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\n"
