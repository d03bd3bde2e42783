"""Shards: plain tar files in which any member is one pread away."""

import subprocess
import tarfile

import numpy as np
import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.shards import ShardWriter, index_path, read_index, read_member

MEMBERS = {"a.mp4": b"x" * 1000, "--b_-.mp4": b"", "c/img_00001.jpg": b"y" * 512, "long" * 50 + ".mp4": b"z" * 70_000}


def write(path, members=MEMBERS, **options):
    with ShardWriter(path, **options) as shard:
        return [shard.add(name, data) for name, data in members.items()]


def test_every_member_is_one_pread_away(tmp_path):
    spans = write(tmp_path / "val" / "part_000.tar")
    assert [read_member(tmp_path / "val/part_000.tar", *span) for span in spans] == list(MEMBERS.values())


def test_the_index_holds_every_members_span_in_order(tmp_path):
    spans = write(tmp_path / "part_000.tar")
    index = read_index(tmp_path / "part_000.tar")
    assert index.dtype == "int64"
    assert index.tolist() == [list(span) for span in spans]


def test_an_index_stays_on_the_disk_and_cannot_be_written(tmp_path):
    """Else every process of a loader would hold all of it: 5 MB for a part's frames."""
    write(tmp_path / "part_000.tar")
    index = read_index(tmp_path / "part_000.tar")
    assert isinstance(index, np.memmap) and not index.flags.writeable


def test_any_tar_tool_reads_a_shard(tmp_path):
    write(tmp_path / "part_000.tar")
    listed = subprocess.run(["tar", "tf", tmp_path / "part_000.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == list(MEMBERS)
    assert listed.stderr == ""
    with tarfile.open(tmp_path / "part_000.tar") as archive:
        assert [archive.extractfile(member).read() for member in archive] == list(MEMBERS.values())


def test_equal_members_give_equal_bytes(tmp_path):
    write(tmp_path / "one.tar")
    write(tmp_path / "two.tar", scratch=tmp_path / "scratch")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert index_path(tmp_path / "one.tar").read_bytes() == index_path(tmp_path / "two.tar").read_bytes()


def test_an_empty_shard_is_a_tar_file_too(tmp_path):
    write(tmp_path / "part_000.tar", {})
    assert read_index(tmp_path / "part_000.tar").shape == (0, 2)
    with tarfile.open(tmp_path / "part_000.tar") as archive:
        assert archive.getnames() == []


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "part_000.tar") as shard:
        shard.add("a", b"a")
        raise RuntimeError("the writer's")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_finished_shard_of_before(tmp_path):
    write(tmp_path / "part_000.tar")
    before = (tmp_path / "part_000.tar").read_bytes()
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "part_000.tar") as shard:
        shard.add("a", b"a")
        raise RuntimeError("the writer's")
    assert (tmp_path / "part_000.tar").read_bytes() == before


def test_a_cut_off_shard_says_so(tmp_path):
    *_, span = write(tmp_path / "part_000.tar")
    whole = (tmp_path / "part_000.tar").read_bytes()
    (tmp_path / "part_000.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"part_000\.tar is \d+ bytes, but the manifest puts a clip at"):
        read_member(tmp_path / "part_000.tar", *span)


def test_a_shard_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UserError, match=r"part_000\.tar is not there"):
        read_member(tmp_path / "part_000.tar", 512, 10)


@pytest.mark.parametrize("offset", [-1, 2**63, None, "7", 10**40])
@pytest.mark.parametrize("size", [5, -5, 2**63, None])
def test_a_span_that_no_shard_has_is_refused_before_it_is_read(tmp_path, offset, size):
    (tmp_path / "x.tar").write_bytes(bytes(100))
    with pytest.raises(UserError, match="100 bytes, but the manifest puts a clip"):
        read_member(tmp_path / "x.tar", offset, size)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (9, 2",
        b"\x93NUMPY\x01\x00\x06\x00((((((",
        b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<i8', 'fortran_order': False, 'shape': (9999999999999, 2)}\n",
        b"\x93NUMPY\x01\x00\x3a\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2)}\n" + bytes(16),
        b"PK\x03\x04",
    ],
)
def test_a_damaged_index_ends_in_a_sentence(tmp_path, contents):
    (tmp_path / "x.idx.npy").write_bytes(contents)
    with pytest.raises(UserError, match=r"x\.idx\.npy cannot be read"):
        read_index(tmp_path / "x.tar")
