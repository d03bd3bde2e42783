"""shards.csv: the same bytes for the same shards, and no name in it leads out of its folder."""

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.part_records import PartRecord
from actionzoo.kinetics.shard_list import ShardLine, ffmpeg_versions, read_shards, write_shards

A, B = "a" * 64, "b" * 64


def record(size: int = 10240, ffmpeg: str = "7.0.2") -> PartRecord:
    return PartRecord(key="k", size=size, sha256=A, index_sha256=B, judged=2, clips=(), ffmpeg=ffmpeg)


def test_a_line_for_each_shard_by_split_and_name(tmp_path):
    path = tmp_path / "shards.csv"
    shards = {"val/part_000-00000002.tar": record(), "train/replacement-00000003.tar": record(ffmpeg="6, patched")}
    shards["train/part_001-00000001.tar"] = record(20480)
    write_shards(path, shards)
    assert path.read_text() == (
        "shard,size,sha256,index_sha256,ffmpeg\n"
        f"train/part_001-00000001.tar,20480,{A},{B},7.0.2\n"
        f'train/replacement-00000003.tar,10240,{A},{B},"6, patched"\n'
        f"val/part_000-00000002.tar,10240,{A},{B},7.0.2\n"
    )
    lines = read_shards(path)
    assert lines[0] == ShardLine("train/part_001-00000001.tar", 20480, A, B, "7.0.2")
    assert ffmpeg_versions(lines) == {"7.0.2": 2, "6, patched": 1}


def test_the_order_of_the_records_changes_nothing(tmp_path):
    shards = {f"val/part_{n:03d}-0000000{n}.tar": record() for n in range(5)}
    write_shards(tmp_path / "a.csv", shards)
    write_shards(tmp_path / "b.csv", dict(reversed(shards.items())))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_form_of_an_older_version_has_no_list(tmp_path):
    assert read_shards(tmp_path / "shards.csv") == []


@pytest.mark.parametrize(
    "line",
    [
        f"val/../../part_000-00000001.tar,1,{A},{B},7",
        f"/etc/part_000-00000001.tar,1,{A},{B},7",
        f"val/passwd,1,{A},{B},7",
        f"val/part_000-00000001.json,1,{A},{B},7",
        f"val/part_000-00000001.tar,-1,{A},{B},7",
        f"val/part_000-00000001.tar,1,{A[:-1]},{B},7",
        "val/part_000-00000001.tar,1",
        "",
    ],
)
def test_a_line_that_describes_no_shard_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "shards.csv"
    path.write_text(f"shard,size,sha256,index_sha256,ffmpeg\n{line}\n")
    with pytest.raises(UserError, match=r"shards\.csv, line 2 describes no shard; restore it"):
        read_shards(path)


@pytest.mark.parametrize("data", [b"", b"shard,size\n", b"\xff\xfe"])
def test_a_file_that_is_no_list_is_refused(tmp_path, data):
    (tmp_path / "shards.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"shards\.csv"):
        read_shards(tmp_path / "shards.csv")
