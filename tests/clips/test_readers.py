"""What every reader promises, on films whose frames say which one they are."""

import dataclasses
import errno
import hashlib
import http.server
import io
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actionzoo.clips.inspect import inspect_clips
from actionzoo.clips.readers import (
    JpegReader,
    LooseJpegReader,
    Undecodable,
    VideoInfo,
    VideoReader,
    inspect_frames,
    inspect_video,
    open_clip,
    read,
)
from actionzoo.errors import machine_fault
from actionzoo.kinetics.manifest import Clip
from actionzoo.kinetics.shards import ShardWriter
from actionzoo.kinetics.transcode import Encode, find_ffmpeg, from_frames, rotate, to_jpegs
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
    with pytest.raises(Undecodable, match=r"^(frame 199 of 200|its video) \(.*\) (cannot|would)"):
        read(VideoReader(data[: int(len(data) * 0.6)], 200), np.array([199]))


def test_frames_beyond_what_can_be_decoded_are_refused_and_not_copied_from_the_last(tmp_path):
    data = cut_without_decoding(tmp_path, film(tmp_path, 100, *H264, "-bf", "2"), 1.1)
    reader = VideoReader(data, 100)  # as the container claims, and as nobody counted
    with pytest.raises(Undecodable, match=r"frame \d+ of 100 \(h264\) .*; encode the video anew"):
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
    contents = inspect_video(film(tmp_path, num_frames, *options, ending=ending))
    assert (contents.num_frames, contents.width, contents.height) == (num_frames, WIDTH, HEIGHT)
    if options is OURS:
        assert contents.fps == pytest.approx(25, abs=0.1)


def test_a_container_that_claims_too_much_is_not_believed(tmp_path):
    data = cut_without_decoding(tmp_path, film(tmp_path, 100, *H264, "-bf", "2"), 1.1)
    assert inspect_video(data).num_frames == 72


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
        inspect_video(film(tmp_path, 100, *options, ending=ending))


@pytest.mark.parametrize("data", [b"", b"no video", bytes(5000)])
def test_what_is_no_video_is_undecodable(data):
    with pytest.raises(Undecodable):
        inspect_video(data)


def test_contents_of_a_folder_are_looked_at(tmp_path):
    make_case("folder of frames", tmp_path)
    assert inspect_frames(tmp_path, 70) == VideoInfo(70, WIDTH, HEIGHT)
    assert inspect_frames(tmp_path, 50) == VideoInfo(50, WIDTH, HEIGHT)  # as the list has it
    with pytest.raises(Undecodable, match=r"img_00071\.jpg and 1 more of 72 frames are not there"):
        inspect_frames(tmp_path, 72)
    with pytest.raises(Undecodable, match="No such file"):
        inspect_frames(tmp_path / "nowhere", 72)


@pytest.mark.parametrize("width", [2, 4, 6, 8, 12, 16, 24, 48, 72, 96, 144, 192, 50, 80])
def test_every_width_has_three_channels_and_the_pixels_that_ffmpeg_decodes(tmp_path, width):
    """FFmpeg pads rows to 192 bytes and more; at some widths decord takes that for channels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (40, 8, -(-width // 4), 3), np.uint8)
    frames = np.ascontiguousarray(np.repeat(np.repeat(coarse, 4, 1), 4, 2)[:, :, :width])
    data = from_frames(frames, fps=25, encode=Encode(gop=8))
    (tmp_path / "film.mp4").write_bytes(data)
    command = [find_ffmpeg(), "-v", "error", "-i", tmp_path / "film.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(frames.shape).astype(int)
    for wanted in (np.arange(40), np.array([20, 22, 24])):  # the whole film, and an excerpt of it
        got = read(VideoReader(data, 40, frames.shape[1:3]), wanted)
        assert got.shape == (len(wanted), *frames.shape[1:]) and got.dtype == np.uint8
        assert np.abs(got - expected[wanted]).mean() < 3
    contents = inspect_video(data)
    assert (contents.num_frames, contents.width, contents.height) == (40, width, 32)


def jpeg(mode: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (10, 200, 90)).convert(mode).save(data, "JPEG")
    return data.getvalue()


def jpeg_reader(kind: str, folder: Path, jpegs: list[bytes]):
    form = folder / "frames_64"
    form.mkdir()
    clip = dataclasses.replace(CLIP, shard="part_0.tar" if kind == "shard" else ".", num_frames=len(jpegs))
    if kind == "folder":
        for number, data in enumerate(jpegs, 1):
            (form / f"img_{number:05d}.jpg").write_bytes(data)
        return open_clip(form, clip)
    with ShardWriter(form / "part_0.tar") as shard:
        spans = [shard.add(f"film/img_{number:05d}.jpg", data) for number, data in enumerate(jpegs, 1)]
    return open_clip(form, dataclasses.replace(clip, offset=spans[0][0], size=sum(spans[-1]) - spans[0][0]))


@pytest.mark.parametrize("kind", ["shard", "folder"])
def test_a_grey_jpeg_has_three_equal_channels(tmp_path, kind):
    (grey,) = read(jpeg_reader(kind, tmp_path, [jpeg("L")]), np.array([0]))
    assert grey.shape == (HEIGHT, WIDTH, 3) and (grey == grey[0, 0, 0]).all()


@pytest.mark.parametrize("kind", ["shard", "folder"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg("CMYK"), "frame 1 is a JPEG in CMYK; make it RGB"),
        (jpeg("RGB", (HEIGHT, WIDTH)), "frame 1 is 64 x 160, the manifest has 160 x 64"),
        (jpeg("L", (WIDTH, HEIGHT + 2)), "frame 1 is 160 x 66, the manifest has 160 x 64"),
        (b"no picture", "frame 1 is a damaged JPEG, or none"),
    ],
    ids=["CMYK", "turned", "grey and larger", "no JPEG"],
)
def test_a_jpeg_amid_a_clip_that_is_of_another_kind_is_refused(tmp_path, kind, data, reason):
    reader = jpeg_reader(kind, tmp_path, [jpeg("RGB"), data, jpeg("RGB")])
    with pytest.raises(Undecodable, match=reason):
        read(reader, np.arange(3))


def test_a_frame_of_another_size_than_the_one_before_is_refused_without_a_manifest(tmp_path):
    for number, data in enumerate((jpeg("RGB"), jpeg("RGB", (WIDTH + 2, HEIGHT))), 1):
        (tmp_path / f"img_{number:05d}.jpg").write_bytes(data)
    with pytest.raises(Undecodable, match="frame 1 is 162 x 64, the one before 160 x 64"):
        read(LooseJpegReader(tmp_path, 2), np.arange(2))


def test_a_video_of_another_size_than_the_manifest_says_is_refused(tmp_path):
    reader = VideoReader(film(tmp_path, 20, *OURS), 20, (HEIGHT, WIDTH + 2))
    with pytest.raises(Undecodable, match="its frames are 160 x 64, the manifest has 162 x 64"):
        read(reader, np.array([3]))


def damaged(data: bytes) -> bytes:
    """The same tables; nothing of the pictures."""
    start = data.index(b"mdat") + 4
    moov = data.find(b"moov", start)
    end = len(data) if moov < 0 else moov - 4
    return data[:start] + bytes([7]) * (end - start) + data[end:]


@pytest.mark.parametrize("look", [inspect_video, lambda data: read(VideoReader(data, 100), np.array([50]))])
def test_the_reason_is_in_our_words_and_the_same_each_time(tmp_path, look):
    """decord's has a clock, a path of its sources and an address."""
    data, reasons = damaged(film(tmp_path, 100, *H264)), set()
    for _ in range(2):
        with pytest.raises(Undecodable) as caught:
            look(data)
        reasons.add(str(caught.value))
    (reason,) = reasons
    assert "encode" in reason and "anew" in reason
    assert not any(word in reason for word in (".cc", "0x", "[", "/tmp", "/project"))


def test_a_loose_video_that_was_changed_since_it_was_imported_does_not_reach_the_decoder(tmp_path):
    data, path = film(tmp_path, 20, *OURS), tmp_path / "film.mp4"
    digest = hashlib.sha256(data).hexdigest()
    clip = dataclasses.replace(CLIP, shard=str(path), offset=0, size=len(data), num_frames=20, sha256=digest)
    assert numbers(read(open_clip(tmp_path / "videos_64", clip), np.array([7]))) == [7]
    for changed in (data[:-1] + b"x", data + b"x", b"#EXTM3U\n"):
        path.write_bytes(changed)
        with pytest.raises(Undecodable, match=r"^film: .*film\.mp4 is not the file that was imported; import it again"):
            open_clip(tmp_path / "videos_64", clip)
    path.unlink()
    with pytest.raises(Undecodable, match=r"film\.mp4 is not there; put it back, or import"):
        open_clip(tmp_path / "videos_64", clip)


@pytest.fixture
def web():
    """A web server of the attacker's; gives its address and what was asked of it."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", hits
    server.shutdown()
    thread.join()
    server.server_close()


def with_external_data(data: bytes, address: str) -> bytes:
    """An mp4 file whose track says that its pictures lie elsewhere (ISO/IEC 14496-12, 8.7.2)."""
    url = address.encode() + b"\0"
    start = data.index(b"url \0\0\0\1") - 4
    grown = bytearray(data[:start] + struct.pack(">I", 12 + len(url)) + b"url \0\0\0\0" + url + data[start + 12 :])
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = grown.rindex(name, 0, start + 8) - 4
        struct.pack_into(">I", grown, place, struct.unpack_from(">I", grown, place)[0] + len(url))
    return bytes(grown)


def attacks(address: str, video: bytes) -> dict[str, bytes]:
    m3u8 = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{address}/a.ts\n#EXT-X-ENDLIST\n"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT9S"><Period><AdaptationSet '
        f'mimeType="video/mp4"><Representation id="1" bandwidth="9"><BaseURL>{address}/a.mp4</BaseURL><SegmentBase/>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    texts = {
        "m3u8": m3u8,
        "m3u8 with a mark": f"\ufeff{m3u8}",
        "ffconcat": f"ffconcat version 1.0\nfile {address}/a.ts\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\na=control:{address}/\nm=video 5004 RTP/AVP 96\n",
        "dash": mpd,
        "smil": f'<smil><body><video src="{address}/a.mp4"/></body></smil>',
        "concat:": f"concat:{address}/a.ts|{address}/b.ts",
        "an address": f"{address}/a.mp4",
    }
    files = {name: text.encode() for name, text in texts.items()}
    behind = {f"{name} behind a box": struct.pack(">I4s", 8, b"free") + data for name, data in files.items()}
    film = {f"{name} behind a film": video + b"\n" + data for name, data in files.items()}
    return files | behind | film | {"external data": with_external_data(video, f"{address}/a.mp4")}


def test_no_file_makes_a_decoder_ask_the_network(tmp_path, web):
    address, hits = web
    for name, data in attacks(address, film(tmp_path, 20, *OURS)).items():
        for look in (inspect_video, lambda data: read(VideoReader(data, 20), np.array([3]))):
            try:
                look(data)
                assert name.endswith(("behind a film", "external data")), name  # the film's own pictures
            except Undecodable:
                pass
            assert hits == [], name


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE])
def test_faults_of_the_machine_are_told_from_faults_of_a_clip(number):
    fault = machine_fault(OSError(number, os.strerror(number), "film.mp4"))
    assert "run again" in str(fault) and "film.mp4" in str(fault)
    assert machine_fault(MemoryError()) is not None
    assert machine_fault(OSError(errno.ENOENT, "No such file or directory")) is None
    assert machine_fault(ValueError("no video")) is None


WITHOUT_FILES = """
import os, resource, sys
from pathlib import Path
import numpy as np
import simplejpeg
from actionzoo.clips.readers import LooseJpegReader, open_clip, read
from actionzoo.errors import MachineFault
from actionzoo.kinetics.manifest import Clip

folder = Path(sys.argv[1])
clip = Clip(video_id="film", split="val", label=0, class_name="film", state="ok", shard=str(folder / "film.mp4"))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for work in (lambda: read(LooseJpegReader(folder, 1), np.array([0])), lambda: open_clip(Path("videos_64"), clip)):
    try:
        work()
    except MachineFault as fault:
        print("Too many open files" in str(fault))
"""


def test_a_process_that_may_open_no_more_files_does_not_blame_the_clip(tmp_path):
    (tmp_path / "img_00001.jpg").write_bytes(jpeg("RGB"))
    (tmp_path / "film.mp4").write_bytes(film(tmp_path, 20, *OURS))
    command = [sys.executable, "-c", WITHOUT_FILES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "True\nTrue\n", done.stderr


def test_a_jpeg_that_claims_more_pixels_than_there_is_memory_for_is_the_clips_fault(tmp_path):
    data = bytearray(jpeg("RGB"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 65500, 65500)
    (tmp_path / "img_00001.jpg").write_bytes(data)
    with pytest.raises(Undecodable, match="frame 0 is 65500 x 65500, more than"):
        read(LooseJpegReader(tmp_path, 1), np.array([0]))


def test_a_file_without_end_is_not_read_to_its_end(tmp_path):
    (tmp_path / "img_00001.jpg").symlink_to("/dev/zero")
    with pytest.raises(Undecodable, match=r"img_00001\.jpg is larger than 64 MiB"):
        read(LooseJpegReader(tmp_path, 1), np.array([0]))
    (tmp_path / "film.mp4").symlink_to("/dev/zero")
    (answer,) = inspect_clips([(tmp_path / "film.mp4", None)], workers=0, timeout_seconds=60)
    assert answer == "it is no file that can be read to its end; name a video"
