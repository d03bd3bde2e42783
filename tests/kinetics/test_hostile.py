"""Malicious or damaged archives and clips: no crash, no hang, no file outside its folder."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.archives import check_archive, read_archive
from actionzoo.kinetics.manifest import Clip, read_manifest
from actionzoo.kinetics.shards import read_member
from actionzoo.kinetics.transcode import Encode, rotate
from tests.kinetics.data_stages import make_archive, make_frames, make_videos
from tests.kinetics.small_films import film
from tests.kinetics.small_mirror import write_split

NUM_DAMAGED = 300
BLOCK = 512


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def header(name: str, size: int, kind: bytes) -> bytes:
    """A header with a right checksum and any size, also one that tarfile would not write."""
    data = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    data[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def words(*pairs: tuple[bytes, bytes]) -> bytes:
    """An extended header: keyword and value, which hold for the next member."""
    lines = b""
    for keyword, value in pairs:
        rest = b" " + keyword + b"=" + value + b"\n"
        size = len(rest) + next(digits for digits in range(1, 9) if len(str(len(rest) + digits)) == digits)
        lines += str(size).encode() + rest
    return header("words", len(lines), tarfile.XHDTYPE) + block(lines)


CLIP = header("clip.mp4", 10, tarfile.REGTYPE) + block(b"x" * 10)
END = bytes(2 * BLOCK)
HUGE = 2**60


LIES = {
    "a folder of an exabyte": (header("f", HUGE, tarfile.DIRTYPE), "f in it claims 1152921504606846976 bytes"),
    "a hidden file of an exabyte": (header("._f", HUGE, tarfile.REGTYPE), "claims 1152921504606846976 bytes"),
    "a file outside, of an exabyte": (header("../f", HUGE, tarfile.REGTYPE), "claims 1152921504606846976 bytes"),
    "a member of no known kind": (header("f", HUGE, b"Q"), "claims 1152921504606846976 bytes"),
    "less than nothing": (header("f.mp4", -512, tarfile.REGTYPE), "claims -512 bytes"),
    "less than nothing, in words": (words((b"size", b"-512")), "claims -512 bytes"),
    "an exabyte, in words": (words((b"size", b"1" + b"0" * 18)), "claims 1000000000000000000 bytes"),
    "a name of a terabyte": (header("f", 2**40, tarfile.GNUTYPE_LONGNAME), "claims 1099511627776 bytes"),
    "words of a terabyte": (header("f", 2**40, tarfile.XHDTYPE), "claims 1099511627776 bytes"),
    "names without end": ((header("f", 4, tarfile.GNUTYPE_LONGNAME) + block(b"abc\0")) * 2000, "recursion"),
    "words without end": (words((b"path", b"q.mp4")) * 2000, "recursion"),
    "holes that are no numbers": (words((b"GNU.sparse.map", b"a,b")), "invalid literal"),
    "holes without a map": (words((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")), "not enough values"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
def test_a_header_that_lies_ends_in_a_sentence_at_once(tmp_path, lie, is_packed):
    start, message = LIES[lie]
    data = start + CLIP + END
    (tmp_path / "part_0.tar").write_bytes(gzip.compress(data) if is_packed else data)
    with pytest.raises(UserError, match=rf"part_0\.tar is not a whole archive: .*{message}"):
        list(read_archive(tmp_path / "part_0.tar"))


@pytest.mark.parametrize("size", [9_000, 2**40])
def test_a_file_with_holes_is_refused(tmp_path, size):
    """Some hundred bytes that unpack to as much as they like: old GNU tar's map of where a sparse file has data."""
    data = bytearray(header("clip.mp4", 0, tarfile.GNUTYPE_SPARSE))
    data[386:410] = b"%011o\0%011o\0" % (min(size, 2**32), 0)  # one stretch of no bytes, at the very end
    data[483:495] = b"%011o\0" % min(size, 2**32)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    (tmp_path / "part_0.tar").write_bytes(bytes(data) + END)
    for read in (check_archive, lambda path: list(read_archive(path))):
        with pytest.raises(UserError, match="sparse"):
            read(tmp_path / "part_0.tar")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers_give_a_clip_or_a_sentence(tmp_path, seed):
    """Bits flipped, kinds and sizes swapped, whole headers replaced; most with a checksum that fits."""
    draw = random.Random(seed)
    for _ in range(100):
        data = bytearray(_archive(draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
        for _ in range(draw.randint(1, 4)):
            at = BLOCK * draw.randrange(len(data) // BLOCK - 2)
            match draw.randrange(4):
                case 0:
                    data[at + draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
                case 1:
                    data[at + 156] = draw.choice(b"0127xgLKSDV3456\0A")
                case 2:
                    data[at + 124 : at + 136] = draw.choice(
                        [b"77777777777\0", b"\xff" * 12, b"0000000-100\0", bytes(12)]
                    )
                case 3:
                    data[at : at + BLOCK] = draw.randbytes(BLOCK)
            if draw.random() < 0.8:
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
        (tmp_path / "part_0.tar").write_bytes(data)
        try:
            found = list(read_archive(tmp_path / "part_0.tar"))
        except UserError:
            continue
        assert all(name and "/" not in name and len(data) <= 4096 for name, data in found)


def _archive(layout: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=layout) as archive:
        for name, size in [("a.mp4", 700), (f"{'l' * 300}.mp4", 100), ("ü\n .mp4", 1500)]:
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    return data.getvalue()


# --- through download, resize and frames


def prepared(folder: Path, archive: bytes | dict[str, bytes], listed: list[str]) -> list[Clip]:
    """A mirror with one part, taken through all data stages in folder/inside; gives the frames' manifest."""
    root, inside = folder / "mirror/400", folder / "inside"
    lines = ["label,youtube_id", *(f'zumba,"{name.replace(chr(34), chr(34) * 2)}"' for name in listed)]
    write_split(root, "val", [archive], "\n".join(lines) + "\n")
    make_archive(root, inside, ["val"])
    encode, timeout = Encode(preset="ultrafast"), {"clip_timeout_seconds": 20}
    make_videos(inside / "archive", inside / "videos_64", 64, encode=encode, **timeout)
    make_frames(inside / "videos_64", inside / "frames_64", max_bad_share=1.0, **timeout)
    return read_manifest(inside / "frames_64/manifest.csv")


def outside(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(folder / "inside")}


NAMES = [
    *("--output", "-", "-rf", "$(touch${IFS}pwned)", "`id`", ";reboot", "a|b", "a>b", "&&", "#", "!", "~", "*", "?"),
    *("'", '"', "''\"", "(game)", "[a]", "{a,b}", "%d", "%05d", "a:b", "file:a", "concat:a", "a=b", "a,b", "a@b"),
    *("a.b.c", "nul", "_000000_000010", "ü中", "\u202e4pm", "x" * 200, "y" * 4000),
]


@pytest.mark.slow
def test_names_are_names_whatever_is_in_them(tmp_path):
    """Each clip has another number of frames: none is taken for another."""
    parts = {f"{name}.mp4": film(num_frames=3 + n, height=36, width=48) for n, name in enumerate(NAMES)}
    before = outside(Path.cwd())
    clips = {clip.video_id: clip for clip in prepared(tmp_path, parts, NAMES)}
    assert {name: clips[name].num_frames for name in NAMES} == {name: 3 + n for n, name in enumerate(NAMES)}
    assert len(clips) == len(NAMES)
    assert outside(Path.cwd()) == before and not (tmp_path / "pwned").exists()
    endings = {path.suffix for path in (tmp_path / "inside/videos_64").rglob("*.*")}
    assert endings == {".tar", ".npy", ".json", ".csv", ".txt"}


def test_names_that_no_list_can_have_are_in_the_manifest_and_nowhere_else(tmp_path):
    strange = ["a b", "tab\there", "new\nline", "return\rhere", "both\r\n", "a\\b", "quote\"d, and 'more'"]
    parts = {f"{name}.mp4": b"a clip" for name in strange} | {"fine.mp4": film(num_frames=5)}
    clips = prepared(tmp_path, parts, ["fine"])
    assert sorted(clip.video_id for clip in clips if clip.state == "unlisted") == sorted(strange)
    assert [clip.video_id for clip in clips if clip.is_usable] == ["fine"]


def test_members_that_point_outside_are_never_written_there(tmp_path):
    """Members with absolute names, `..`, links of both kinds that later members go through, devices, a pipe."""
    whole, data = film(num_frames=5), io.BytesIO()
    target = tmp_path / "target"
    target.mkdir()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:

        def add(name: str, contents: bytes = whole, **fields) -> None:
            member = tarfile.TarInfo(name)
            member.size = 0 if fields else len(contents)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(contents))

        for name in (f"{target}/absolute.mp4", "../up.mp4", "../../target/up.mp4", "a/../../target/mid.mp4"):
            add(name)
        add("link", type=tarfile.SYMTYPE, linkname=str(target))
        add("link/through.mp4")
        add("passwd.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.mp4", type=tarfile.LNKTYPE, linkname="../../../etc/passwd")
        add("pipe.mp4", type=tarfile.FIFOTYPE)
        add("disk.mp4", type=tarfile.BLKTYPE, devmajor=8)
        add("zero.mp4", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add("fine.mp4")
    listed = ["absolute", "up", "mid", "through", "passwd", "hard", "pipe", "disk", "zero", "fine"]
    clips = {clip.video_id: clip for clip in prepared(tmp_path, data.getvalue(), listed)}
    # what goes through the link is a file called through; there is no link here to go through
    assert {name for name, clip in clips.items() if clip.is_usable} == {"through", "fine"}
    assert {clips[name].state for name in ("absolute", "up", "mid", "passwd", "hard", "pipe", "disk", "zero")} == {
        "missing"
    }
    assert list(target.iterdir()) == []
    kinds = [
        path for path in (tmp_path / "inside").rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())
    ]
    assert kinds == []


def test_an_archive_whose_headers_lie_is_refused_by_the_download(tmp_path):
    with pytest.raises(UserError, match=r"val/part_0\.tar\.gz: not a whole archive, fetched twice: f in it claims"):
        prepared(tmp_path, header("f", HUGE, tarfile.DIRTYPE) + CLIP + END, ["clip"])
    assert not list((tmp_path / "inside").rglob("part_*"))


# --- damaged clips


def flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 3, 30])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def cut_off(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def zero_a_stretch(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice([16, 256, 4096]))
    data[start:end] = bytes(end - start)


def overwrite_a_stretch(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice([4, 64, 1024]))
    data[start:end] = draw.randbytes(end - start)


def drop_a_stretch(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    del data[start : start + draw.choice([1, 100, 1000])]


def swap_headers(data: bytearray, draw: random.Random) -> None:
    """Two of an mp4 file's boxes change their names; what was pictures becomes tables, and the other way round."""
    names = [b"ftyp", b"moov", b"mdat", b"trak", b"stsd", b"stts", b"stsz", b"stco", b"stsc", b"avcC", b"tkhd", b"mdhd"]
    places = {name: data.find(name) for name in names}
    here = [name for name, place in places.items() if place >= 0]
    one, other = draw.sample(here, 2)
    data[places[one] : places[one] + 4], data[places[other] : places[other] + 4] = other, one


def lie_in_tables(data: bytearray, draw: random.Random) -> None:
    """A number in a header becomes as large as it gets: sizes, counts, durations, offsets."""
    start = data.find(b"moov")
    at = draw.randrange(start, len(data) - 4) if 0 <= start < len(data) - 4 else 0
    data[at : at + 4] = draw.choice(
        [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff", b"\x00\x00\x00\x00"]
    )


def only_noise(data: bytearray, draw: random.Random) -> None:
    """A head that says mp4, and nothing behind it that is."""
    data[32:] = draw.randbytes(len(data) - 32)


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip_bits, cut_off, zero_a_stretch, overwrite_a_stretch, drop_a_stretch, swap_headers, lie_in_tables, only_noise,
]  # fmt: skip


@pytest.mark.slow
def test_damaged_clips_each_have_a_state_and_a_reason(tmp_path):
    small = {"num_frames": 10, "height": 52, "width": 64}
    wholes = [
        film(**small),
        film(**small, hold_every=3),
        rotate(film(**small), 90),
        film(num_frames=1, height=52, width=64),
    ]
    parts = {}
    for n in range(NUM_DAMAGED):
        draw = random.Random(n)
        data = bytearray(wholes[n % len(wholes)])
        DAMAGES[n % len(DAMAGES)](data, draw)
        parts[f"clip{n:03d}.mp4"] = bytes(data)
    parts["whole.mp4"] = wholes[0]
    listed = [name.removesuffix(".mp4") for name in parts]
    clips = {clip.video_id: clip for clip in prepared(tmp_path, parts, listed)}

    assert sorted(clips) == sorted(listed)
    assert (clips["whole"].state, clips["whole"].reason, clips["whole"].num_frames) == ("ok", "", 10)
    assert {clip.state for clip in clips.values()} == {"ok", "corrupt"}
    corrupt = [clip for clip in clips.values() if clip.state == "corrupt"]
    assert all(clip.reason and clip.sha256 and not clip.shard for clip in corrupt)
    assert not [clip.reason for clip in corrupt if clip.reason.startswith("timed out")]
    # no reason names a place of ours, none is longer than a line
    assert not [clip.reason for clip in clips.values() if str(tmp_path) in clip.reason or len(clip.reason) > 200]
    # what is called ok is pictures, as many as it says
    videos = {clip.video_id: clip for clip in read_manifest(tmp_path / "inside/videos_64/manifest.csv")}
    usable = [clip for clip in videos.values() if clip.is_usable]
    assert all(frames_of(tmp_path / "inside/videos_64", clip) == clip.num_frames for clip in usable)
    assert min(len(corrupt), len(usable)) > NUM_DAMAGED / 10  # some of each, or the damage was of one kind

    assert not list((tmp_path / "inside/scratch").glob("*/clip-*"))
    kept = {
        path.relative_to(tmp_path / "inside").parts[0] for path in (tmp_path / "inside").rglob("*") if path.is_file()
    }
    assert kept == {"archive", "videos_64", "frames_64", "scratch"}
    assert {path.name for path in tmp_path.iterdir()} == {"mirror", "inside"}


def frames_of(folder: Path, clip: Clip) -> int:
    """How many frames the loader's decoder gets."""
    import decord

    video = decord.VideoReader(io.BytesIO(read_member(folder / clip.shard, clip.offset, clip.size)), num_threads=1)
    return len(video.get_batch(range(len(video))).asnumpy())
