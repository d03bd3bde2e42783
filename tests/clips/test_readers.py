"""What every reader promises, on films whose frames say which one they are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actionzoo.clips.readers import (
    Contents,
    JpegReader,
    LooseJpegReader,
    Undecodable,
    VideoReader,
    frames_contents,
    open_clip,
    read,
    video_contents,
)
from actionzoo.kinetics.manifest import Clip
from actionzoo.kinetics.shards import ShardWriter
from actionzoo.kinetics.transcode import rotate, to_jpegs
from tests.clips.counted_films import HEIGHT, WIDTH, cut_without_decoding, film, number_of

H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
OURS = (*H264, "-g", "16", "-bf", "0", "-preset", "veryfast", "-tune", "fastdecode")
UNEVEN = ("-vf", "setpts='(N+floor(N/5)*3)/(FRAME_RATE*TB)'", "-fps_mode", "passthrough", "-enc_time_base", "1/90000")
CLIP = Clip(video_id="film", split="val", label=0, class_name="film", state="ok", width=WIDTH, height=HEIGHT)


@dataclasses.dataclass
class Case:
    open: Callable[[], object]
    num_frames: int
    first: int = 0
    """The number that is written on its first frame."""


def make_case(name: str, folder: Path) -> Case:
    if name in ("shard of frames", "folder of frames"):
        jpegs = to_jpegs(film(folder, 70, *OURS), qscale=2, timeout_seconds=60, scratch=folder / "scratch").frames
        if name == "folder of frames":
            for number, jpeg in enumerate(jpegs, 1):
                (folder / f"img_{number:05d}.jpg").write_bytes(jpeg)
            return Case(lambda: LooseJpegReader(folder, 70), 70)
        with ShardWriter(folder / "part_0.tar") as shard:
            shard.add("other/img_00001.jpg", jpegs[9])
            spans = [shard.add(f"film/img_{number:05d}.jpg", jpeg) for number, jpeg in enumerate(jpegs, 1)]
        clip = dataclasses.replace(CLIP, offset=spans[0][0], size=sum(spans[-1]) - spans[0][0], num_frames=70)
        return Case(lambda: JpegReader(folder / "part_0.tar", clip), 70)
    if name == "cut off in front":  # claims 100 frames, of which the first 28 are there only to be decoded
        data = cut_without_decoding(folder, film(folder, 100, *H264, "-bf", "2"), 1.1)
        return Case(lambda: VideoReader(data, 72), 72, first=28)
    options = {
        "ours": OURS,
        "x264's defaults": H264,
        "sixteen B-frames, in a pyramid": (*H264, "-bf", "16", "-x264-params", "b-pyramid=normal:ref=4:b-adapt=0"),
        "uneven frame rate": (*UNEVEN, *H264, "-bf", "3"),
        "matroska": H264,
        "webm": ("-c:v", "libvpx-vp9", "-b:v", "200k", "-deadline", "realtime"),
        "one frame": OURS,
    }[name]
    num_frames = {"one frame": 1, "x264's defaults": 280}.get(name, 100)
    data = film(folder, num_frames, *options, ending={"matroska": "mkv", "webm": "webm"}.get(name, "mp4"))
    return Case(lambda: VideoReader(data, num_frames), num_frames)


NAMES = [
    "ours", "x264's defaults", "sixteen B-frames, in a pyramid", "uneven frame rate", "matroska", "webm", "one frame",
    "cut off in front", "shard of frames", "folder of frames",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def case(request, tmp_path_factory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("film"))


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def test_the_first_and_the_last_frame_are_there(case):
    reader = case.open()
    assert reader.num_frames == case.num_frames
    last = case.num_frames - 1
    assert numbers(read(reader, np.array([0, last]))) == [case.first, case.first + last]
    assert numbers(read(case.open(), np.array([last]))) == [case.first + last]


def test_frames_come_as_asked_in_any_order_and_repeated(case):
    rng = np.random.default_rng(0)
    for _ in range(3):
        wanted = rng.integers(0, case.num_frames, 12)
        frames = read(case.open(), wanted)
        assert frames.dtype == np.uint8 and frames.shape == (12, HEIGHT, WIDTH, 3)
        assert numbers(frames) == (case.first + wanted).tolist()


def test_clips_as_they_are_sampled_are_right_wherever_they_start(case):
    for start in range(0, case.num_frames, 17):
        wanted = np.arange(start, case.num_frames, 2)[:32]
        frames = [number_of(frame) for frame in case.open().each(wanted)]
        assert frames == (case.first + wanted).tolist()


def test_one_reader_serves_several_times(case):
    reader = case.open()
    for wanted in (np.array([case.num_frames // 2]), np.array([0]), np.arange(case.num_frames)[-5:]):
        assert numbers(read(reader, wanted)) == (case.first + wanted).tolist()


@pytest.mark.parametrize("beyond", [0, 1, 1000, "before"])
def test_frames_that_are_not_there_are_refused(case, beyond):
    wanted = np.array([0, -1 if beyond == "before" else case.num_frames + beyond])
    with pytest.raises(IndexError, match=f"it has {case.num_frames}"):
        read(case.open(), wanted)


@pytest.mark.parametrize(("degrees", "shape"), [(90, (WIDTH, HEIGHT)), (180, (HEIGHT, WIDTH)), (270, (WIDTH, HEIGHT))])
def test_a_film_that_is_marked_as_turned_is_seen_upright(tmp_path, degrees, shape):
    reader = VideoReader(rotate(film(tmp_path, 40, *OURS), degrees), 40)
    frames = read(reader, np.array([33, 5]))
    assert frames.shape[1:3] == shape
    # np.rot90 turns counter-clockwise, as the mark says
    assert numbers(np.rot90(frames, -degrees // 90, axes=(1, 2))) == [33, 5]


def test_a_film_that_is_cut_off_is_refused_and_not_filled_up(tmp_path):
    data = film(tmp_path, 200, *OURS, "-movflags", "+faststart")
    whole = read(VideoReader(data, 200), np.array([199]))
    assert numbers(whole) == [199]
    with pytest.raises(Exception, match=r"Error|Check failed"):
        read(VideoReader(data[: int(len(data) * 0.6)], 200), np.array([199]))


def test_frames_beyond_what_can_be_decoded_are_refused_and_not_copied_from_the_last(tmp_path):
    data = cut_without_decoding(tmp_path, film(tmp_path, 100, *H264, "-bf", "2"), 1.1)
    reader = VideoReader(data, 100)  # as the container claims, and as nobody counted
    with pytest.raises(Exception, match="duplicate"):
        list(reader.each(np.arange(100)))


@pytest.mark.parametrize("options", [OURS, H264])
def test_a_film_with_fewer_frames_than_the_manifest_has_is_refused(tmp_path, options):
    reader = VideoReader(film(tmp_path, 100, *options), 150)
    for wanted in ([0, 149], [95, 101], [100], [120, 121]):
        with pytest.raises(IndexError, match="it has 100"):
            read(reader, np.array(wanted))


def test_a_damaged_jpeg_is_refused(tmp_path):
    case = make_case("folder of frames", tmp_path)
    path = tmp_path / "img_00002.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(Exception, match="JPEG"):
        read(case.open(), np.array([1]))


def test_a_clip_that_cannot_be_opened_is_named(tmp_path):
    clip = dataclasses.replace(CLIP, shard="val/part_0.tar", offset=0, size=10, num_frames=10)
    with pytest.raises(Undecodable, match=r"^film: .*part_0\.tar is not there"):
        open_clip(tmp_path / "videos_256", clip)


@pytest.mark.parametrize(
    ("options", "ending", "num_frames"),
    [(OURS, "mp4", 90), (H264, "mp4", 260), ((*UNEVEN, *H264), "mp4", 60), (H264, "mkv", 60), (OURS, "mp4", 1)],
)
def test_contents_of_a_video_are_counted(tmp_path, options, ending, num_frames):
    contents = video_contents(film(tmp_path, num_frames, *options, ending=ending))
    assert (contents.num_frames, contents.width, contents.height) == (num_frames, WIDTH, HEIGHT)
    if options is OURS:
        assert contents.fps == pytest.approx(25, abs=0.1)


def test_a_container_that_claims_too_much_is_not_believed(tmp_path):
    data = cut_without_decoding(tmp_path, film(tmp_path, 100, *H264, "-bf", "2"), 1.1)
    assert video_contents(data).num_frames == 72


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ((*H264, "-bf", "3", "-g", "30", "-x264-params", "open-gop=1"), "mp4"),
        (("-c:v", "mpeg4", "-bf", "2", "-q:v", "3"), "avi"),
    ],
)
def test_a_video_whose_frames_cannot_be_found_by_number_is_refused(tmp_path, options, ending):
    """decord is a frame off after it seeks in such files."""
    with pytest.raises(Undecodable, match=r"frame \d+ cannot be found by its number; encode the video anew"):
        video_contents(film(tmp_path, 100, *options, ending=ending))


@pytest.mark.parametrize("data", [b"", b"no video", bytes(5000)])
def test_what_is_no_video_is_undecodable(data):
    with pytest.raises(Undecodable):
        video_contents(data)


def test_contents_of_a_folder_are_looked_at(tmp_path):
    make_case("folder of frames", tmp_path)
    assert frames_contents(tmp_path, 70) == Contents(70, WIDTH, HEIGHT)
    assert frames_contents(tmp_path, 50) == Contents(50, WIDTH, HEIGHT)  # as the list has it
    with pytest.raises(Undecodable, match=r"img_00071\.jpg and 1 more of 72 frames are not there"):
        frames_contents(tmp_path, 72)
    with pytest.raises(Undecodable, match="No such file"):
        frames_contents(tmp_path / "nowhere", 72)
