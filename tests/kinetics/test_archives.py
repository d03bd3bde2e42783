"""Archives come from strangers: nothing of them is written anywhere, and what is not whole is refused."""

import gzip
import hashlib
import io
import tarfile

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics import archives
from actionzoo.kinetics.archives import check_archive, read_archive

CLIPS = {"--a_-b.mp4": b"one" * 999, "zero.mp4": b"", "c.d.mp4": b"three" * 20_000}


def tar(path, files=CLIPS, mode="w:gz", odd=()):
    with tarfile.open(path, mode) as archive:
        for member in odd:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compression_is_told_from_the_contents_not_the_name(tmp_path, mode):
    path = tar(tmp_path / "part_0.tar.gz", mode=mode)
    assert dict(read_archive(path)) == {"--a_-b": b"one" * 999, "zero": b"", "c.d": b"three" * 20_000}


def test_folders_are_dropped_from_names(tmp_path):
    path = tar(tmp_path / "x.tgz", {"replacement_for_corrupted_k400/a.mp4": b"a"})
    assert list(read_archive(path)) == [("a", b"a")]


@pytest.mark.parametrize(
    "odd",
    [
        member("._a.mp4", size=10),
        member("folder", type=tarfile.DIRTYPE),
        member("link.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link.mp4", type=tarfile.LNKTYPE, linkname="--a_-b.mp4"),
        member("device.mp4", type=tarfile.CHRTYPE),
        member("pipe.mp4", type=tarfile.FIFOTYPE),
        member("/etc/passwd", size=10),
        member("../../a.mp4", size=10),
        member("a/../../b.mp4", size=10),
    ],
    ids=lambda info: f"{info.name} {info.type.decode()}",
)
def test_what_is_no_clip_is_passed_over(tmp_path, odd):
    assert [name for name, _ in read_archive(tar(tmp_path / "x.tgz", odd=[odd]))] == ["--a_-b", "zero", "c.d"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_off_archive_is_refused(tmp_path, mode, share):
    whole = tar(tmp_path / "part_0.tar.gz", mode=mode).read_bytes()
    (tmp_path / "part_0.tar.gz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"part_0\.tar\.gz is not a whole archive: .*delete it"):
        list(read_archive(tmp_path / "part_0.tar.gz"))


def test_an_archive_cut_off_between_two_members_is_refused(tmp_path):
    whole = tar(tmp_path / "part_0.tar", mode="w").read_bytes()
    (tmp_path / "part_0.tar").write_bytes(whole[: 512 + 3072])  # the first member: header, 2997 bytes in six blocks
    with pytest.raises(UserError, match="ends too early"):
        list(read_archive(tmp_path / "part_0.tar"))


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    whole = bytearray(tar(tmp_path / "part_0.tar", mode="w").read_bytes())
    whole[512 + 3072] ^= 0xFF
    (tmp_path / "part_0.tar").write_bytes(whole)
    with pytest.raises(UserError, match="bad checksum"):
        list(read_archive(tmp_path / "part_0.tar"))


def test_a_flipped_bit_is_found_by_the_checksum_at_the_end(tmp_path):
    whole = bytearray(tar(tmp_path / "part_0.tar", mode="w").read_bytes())
    packed = bytearray(gzip.compress(bytes(whole), compresslevel=0))
    packed[2000] ^= 1  # stored, not deflated: the flip is in a clip's data
    (tmp_path / "part_0.tar.gz").write_bytes(packed)
    with pytest.raises(UserError, match="CRC"):
        list(read_archive(tmp_path / "part_0.tar.gz"))


@pytest.mark.parametrize("contents", [b"", b"<html>404</html>" * 100, b"\x1f\x8b"])
def test_what_is_no_archive_is_refused(tmp_path, contents):
    (tmp_path / "part_0.tar.gz").write_bytes(contents)
    with pytest.raises(UserError, match="not a whole archive"):
        list(read_archive(tmp_path / "part_0.tar.gz"))


def test_a_file_too_large_for_a_clip_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 50_000)
    with pytest.raises(UserError, match=r"c\.d\.mp4 in it claims 100000 bytes"):
        list(read_archive(tar(tmp_path / "x.tgz")))


def test_checking_counts_the_files_and_hashes_the_archive(tmp_path):
    path = tar(tmp_path / "x.tgz")
    assert check_archive(path) == (3, hashlib.sha256(path.read_bytes()).hexdigest())
