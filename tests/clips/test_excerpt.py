"""Parts of mp4 files, checked by decoding them."""

import struct

import numpy as np
import pytest

from actionzoo.clips.excerpt import excerpt
from actionzoo.clips.readers import VideoReader, inspect_video, read
from tests.clips.counted_films import cut_without_decoding, film, number_of

OURS = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "16", "-bf", "0")
UNEVEN = ("-vf", "setpts='(N+floor(N/5)*3)/(FRAME_RATE*TB)'", "-fps_mode", "passthrough", "-enc_time_base", "1/90000")
SOUND = ("-f", "lavfi", "-i", "sine", "-shortest", "-c:a", "aac")


def numbers(data: bytes, num_frames: int) -> list[int]:
    return [number_of(frame) for frame in read(VideoReader(data, num_frames), np.arange(num_frames))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [OURS, (*OURS, "-movflags", "+faststart"), (*UNEVEN, *OURS), (*OURS, "-g", "1")], ids=" ".join
)
def test_an_excerpt_is_a_video_of_the_frames_from_a_keyframe_to_the_last(tmp_path, options):
    data = film(tmp_path, 100, *options)
    for first, last in [(0, 0), (0, 99), (5, 20), (16, 16), (31, 94), (99, 99)]:
        part, start = excerpt(data, first, last)
        assert start <= first and (start % 16 == 0 or options[-1] == "1")
        assert numbers(part, last - start + 1) == list(range(start, last + 1))
        assert inspect_video(part).num_frames == last - start + 1
        assert len(part) < len(data) or first == 0


def test_frames_have_the_pixels_that_they_have_in_the_whole(tmp_path):
    data = film(tmp_path, 100, *OURS, "-tune", "fastdecode")
    wanted = np.arange(37, 90, 2)
    part, start = excerpt(data, 37, 89)
    whole = [frame.copy() for frame in VideoReader(data, 100).each(np.arange(100))]  # too much of it for an excerpt
    assert (read(VideoReader(part, 90 - start), wanted - start) == np.stack(whole)[wanted]).all()


def test_sound_is_left_behind_or_the_whole_is_taken(tmp_path):
    with_sound = film(tmp_path, 50, *SOUND, *OURS)
    assert b"soun" in with_sound and excerpt(with_sound, 20, 30) is None


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        (("-c:v", "libx264", "-pix_fmt", "yuv420p"), "mp4"),  # B-frames: the order of packets is not that of frames
        ((*OURS, "-movflags", "+frag_keyframe+empty_moov"), "mp4"),
        (OURS, "mkv"),
    ],
)
def test_files_of_other_kinds_are_not_touched(tmp_path, options, ending):
    assert excerpt(film(tmp_path, 60, *options, ending=ending), 20, 30) is None


def test_a_file_that_hides_its_first_frames_is_not_touched(tmp_path):
    assert excerpt(cut_without_decoding(tmp_path, film(tmp_path, 60, *OURS), 0.9), 5, 9) is None


def test_frames_that_are_not_there_give_nothing(tmp_path):
    data = film(tmp_path, 60, *OURS)
    assert excerpt(data, 50, 60) is None and excerpt(data, -1, 5) is None and excerpt(data, 30, 20) is None


def test_damaged_tables_give_nothing_or_something_and_no_other_error(tmp_path):
    data = film(tmp_path, 60, *OURS)
    for name in (b"moov", b"trak", b"stsz", b"stco", b"stsc", b"stss", b"stts", b"stsd", b"tkhd"):
        place = data.index(name)
        for damage in (b"\xff\xff\xff\xff", b"\0\0\0\0", struct.pack(">I", 7)):
            for offset in (-4, 0, 8, 12):
                broken = data[: place + offset] + damage + data[place + offset + 4 :]
                excerpt(broken, 20, 30)
        excerpt(data[:place], 20, 30)
    assert excerpt(b"", 0, 1) is None and excerpt(bytes(100), 0, 1) is None
