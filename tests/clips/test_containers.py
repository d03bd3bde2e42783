"""Files as ffmpeg writes them, and files that are none."""

import random

import pytest

from actionzoo.clips.containers import begins_like_video, codec_of, mentions_playlist
from tests.clips.counted_films import film

H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "5")
FILES = {
    "mp4": (H264, "mp4", "h264"),
    "fragmented mp4": ((*H264, "-movflags", "frag_keyframe+empty_moov"), "mp4", "h264"),
    "mov": (H264, "mov", "h264"),
    "3gp": (("-c:v", "mpeg4", "-s", "176x144"), "3gp", "mpeg4"),
    "matroska": (H264, "mkv", "h264"),
    "webm": (("-c:v", "libvpx-vp9", "-b:v", "200k", "-deadline", "realtime"), "webm", "vp9"),
    "avi": (("-c:v", "mpeg4", "-q:v", "5"), "avi", "mpeg4"),
    "flv": (("-c:v", "flv1", "-q:v", "5"), "flv", "flv1"),
    "program stream": (MPEG2, "mpg", "mpeg2video"),
    "MPEG video": (MPEG2, "m2v", "mpeg2video"),
    "transport stream": (H264, "ts", "h264"),
    "transport stream with times": ((*H264, "-mpegts_m2ts_mode", "1"), "m2ts", "h264"),
    "asf": (("-c:v", "wmv2", "-q:v", "5"), "wmv", "wmv2"),
    "gif": ((), "gif", "gif"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_container_is_known_by_its_first_bytes_and_names_its_codec(tmp_path, name):
    options, ending, codec = FILES[name]
    data = film(tmp_path, 30, *options, ending=ending)
    assert begins_like_video(data) and not mentions_playlist(data)
    assert codec_of(data) in (codec, "unknown")  # ffmpeg has no list entry for MPEG video without a container
    assert name == "MPEG video" or codec_of(data) == codec


@pytest.mark.parametrize(
    "data",
    [b"", b"G", b"RIFF1234WAVE", b"#EXTM3U\n", b"ffconcat version 1.0\n", b"<?xml version='1.0'?><MPD>", b"v=0\r\n",
     b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"PK\x03\x04", bytes(1000), b"\x7fELF"],
)  # fmt: skip
def test_other_files_are_not_taken_for_videos(data):
    assert not begins_like_video(data)


def test_noise_is_not_taken_for_a_playlist():
    """Words of four letters would be found in one of some hundred videos."""
    noise = random.Random(0)
    assert not any(mentions_playlist(noise.randbytes(2**20)) for _ in range(20))


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U", "#extm3u", "ffconcat version 1.0", "urn:mpeg:dash:profile:isoff-live:2011", "\nc=IN IP4 127.0.0.1",
     "<SmoothStreamingMedia MajorVersion='2'>", "[playlist]\nFile1=", "<smil>"],
)  # fmt: skip
def test_words_of_playlists_are_found_behind_the_first_bytes_of_a_video(tmp_path, text):
    assert mentions_playlist(film(tmp_path, 3, *H264) + text.encode())
