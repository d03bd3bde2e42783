"""Archives are untrusted: none of their members is written anywhere, and an archive that is not whole is refused."""

import dataclasses
import errno
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest

from actionzoo.errors import MachineFault, UserError
from actionzoo.kinetics import archives
from actionzoo.kinetics.archives import check_archive, read_archive
from actionzoo.kinetics.inventory import ArchivedFile

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
def test_members_that_are_no_clips_are_skipped(tmp_path, odd):
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
def test_a_file_that_is_no_archive_is_refused(tmp_path, contents):
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


def test_an_archive_that_unpacks_to_much_more_than_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FREE_BYTES", 100_000)
    bomb = tar(tmp_path / "x.tgz", {"zeros.mp4": bytes(10_000_000)})
    for read in (check_archive, lambda path: list(read_archive(path))):
        with pytest.raises(UserError, match="unpacks to more than 20 times its size"):
            read(bomb)


def test_zeros_behind_the_last_file_are_part_of_what_an_archive_unpacks_to(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FREE_BYTES", 100_000)
    plain = tar(tmp_path / "x.tar", {"a.mp4": b"a"}, mode="w").read_bytes()
    (tmp_path / "x.tgz").write_bytes(gzip.compress(plain + bytes(10_000_000)))
    with pytest.raises(UserError, match="unpacks to more than 20 times its size"):
        check_archive(tmp_path / "x.tgz")


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(UserError, match="more than 2 members"):
        check_archive(tar(tmp_path / "x.tgz"))


def test_counting_the_files_never_holds_one_of_them(tmp_path):
    """A clip of 200 MB is counted in some megabytes of memory."""
    path = tar(tmp_path / "x.tar", {"large.mp4": bytes(200_000_000)}, mode="w")
    program = (
        "import resource, sys; from actionzoo.kinetics.archives import check_archive\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count, _ = check_archive(sys.argv[1])\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    printed = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    count, kilobytes = map(int, printed.split())
    assert count == 1 and kilobytes < 20_000


def test_a_disk_that_fails_is_no_broken_archive(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tar", mode="w")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(archives._Hashing, "read", fail)
    with pytest.raises(MachineFault, match="Input/output error"):
        check_archive(path)


def test_an_archive_is_compared_with_what_is_expected_of_it(tmp_path):
    path = tar(tmp_path / "part_0.tar.gz")
    num_files, sha256 = check_archive(path)
    right = ArchivedFile(size=path.stat().st_size, sha256=sha256)
    assert len(list(read_archive(path, right))) == num_files == len(CLIPS)
    assert len(list(read_archive(path, dataclasses.replace(right, sha256="")))) == num_files  # of an older inventory
    reader = read_archive(path, dataclasses.replace(right, sha256="0" * 64))
    assert [next(reader)[0] for _ in CLIPS] == ["--a_-b", "zero", "c.d"]  # hashed as it is read
    with pytest.raises(
        archives.OtherArchive, match=r"its sha256 is \w{8}… instead of 00000000…; .*`dvc repro -f download`"
    ):
        next(reader)
    with pytest.raises(archives.OtherArchive, match=r"it has \d+ bytes instead of 7"):
        next(read_archive(path, dataclasses.replace(right, size=7)))
    with pytest.raises(archives.OtherArchive, match="it is not there"):
        next(read_archive(tmp_path / "part_1.tar.gz", right))
