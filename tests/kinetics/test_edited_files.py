"""Small files that were edited by hand or damaged by a disk: their readers say so, in one sentence."""

import json

import pytest

from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.annotations import read_annotations
from actionzoo.kinetics.archives import read_archive
from actionzoo.kinetics.check import check_data
from actionzoo.kinetics.download import parse_parts
from actionzoo.kinetics.inventory import read_inventory
from actionzoo.kinetics.manifest import Clip, read_manifest, write_manifest
from actionzoo.kinetics.part_records import key_of, make_key, read_record, write_record
from actionzoo.kinetics.shards import ShardWriter
from tests.kinetics.data_stages import make_archive

DIGITS = "9" * 5000
HEADER = "label,youtube_id,time_start,time_end\n"


# annotations


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_annotations_are_read_in_every_encoding_that_says_which_it_is(tmp_path, encoding, line_end):
    text = f'{HEADER}"zumba, or ü",abc,1,11\n'.replace("\n", line_end)
    (tmp_path / "val.csv").write_bytes(text.encode(encoding))
    (clip,) = read_annotations(tmp_path / "val.csv", "val")
    assert (clip.video_id, clip.class_name) == ("abc_000001_000011", "zumba, or ü")


@pytest.mark.parametrize("time", [DIGITS, "1e999", "1e30", "nan", "inf", "-5", "1_0", "٣", "12345678"])
def test_a_time_that_is_no_time_is_named(tmp_path, time):
    (tmp_path / "val.csv").write_text(f"{HEADER}zumba,abc,{time},11\n")
    with pytest.raises(UserError, match=r"val\.csv, line 2: time_start, time_end are .{1,60}, '11', not seconds"):
        read_annotations(tmp_path / "val.csv", "val")


@pytest.mark.parametrize(
    "data", [HEADER.encode() + b"a\xff,b,1,2\n", HEADER.encode() + b"a\0,b,1,2\n", (HEADER + "x" * 200_000).encode()]
)
def test_annotations_that_are_none_end_in_a_sentence(tmp_path, data):
    (tmp_path / "val.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"val\.csv is no.*; delete it and run the stage `download`"):
        read_annotations(tmp_path / "val.csv", "val")


# manifest


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        (b",512,", f",{DIGITS},".encode(), "line 2: '9{40}' is no number of bytes"),
        (b",512,", b",-1,", "line 2: '-1' is no number of bytes"),
        (b",25.0,", b",nan,", "line 2: 'nan' is no number of frames per second"),
        (b",25.0,", b",1e999,", "line 2: '1e999' is no number of frames per second"),
        (b"zumba", b"z\xffmba", "not text in UTF-8"),
        (b"zumba", b"z" * 200_000, "line 2: field larger than field limit"),
        (b"video_id", b"\xff\xfe", "not text in UTF-8"),
        (b"video_id", b"v" * 200_000, "line 1: field larger than field limit"),
        (b",ok,", b"," + b"o" * 10_000 + b",", r"line 2: state is 'o{40}', not one of"),
    ],
)
def test_a_damaged_manifest_ends_in_a_sentence(tmp_path, find, put, message):
    path = tmp_path / "manifest.csv"
    clip = Clip(video_id="a", split="val", label=0, class_name="zumba", state="ok", offset=512, size=10, fps=25.0)
    write_manifest(path, [clip])
    path.write_bytes(path.read_bytes().replace(find, put, 1))
    with pytest.raises(UserError, match=rf"manifest\.csv, (after )?.*{message}.*make it anew") as caught:
        read_manifest(path)
    assert len(str(caught.value)) < 1000


# what `download` leaves


INVENTORY = {
    "files": {"val/part_0.tar.gz": {"size": 3, "sha256": "ab" * 32}},
    "splits": {"val": {"parts": [0], "listed": 1}},
}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "[" * 100_000, f'{{"files": {DIGITS}}}', '{"files": {}, "splits": {}}'),
        *(
            json.dumps(INVENTORY | {"files": files})
            for files in (
                *([], "x", {"val/part_0.tar.gz": 3}, {"val/part_0.tar.gz": {}}, {"val/part_0.tar.gz": {"size": "3"}}),
                *({"val/part_0.tar.gz": {"size": -3}}, {"val/part_0.tar.gz": {"size": 3, "sha256": []}}),
                *({"../val/part_0.tar.gz": {"size": 3}}, {"/val/part_0.tar.gz": {"size": 3}}, {"": {"size": 3}}),
                *({"x\ud800": {"size": 3}}, {"x" * 300: {"size": 3}}, {"val/part_1.tar.gz": {"size": 3}}),
            )
        ),
        *(
            json.dumps(INVENTORY | {"splits": splits})
            for splits in (
                *([], {"val": []}, {"val": {}}, {"val": {"parts": [0]}}, {"(": {"parts": [0], "listed": 1}}),
                *({"val": {"parts": ["0"], "listed": 1}}, {"val": {"parts": [1.5], "listed": 1}}),
                *({"val": {"parts": [0], "listed": "1"}}, {"val": {"parts": [7], "listed": 1}}),
            )
        ),
    ],
)
def test_an_inventory_that_is_none_ends_in_a_sentence(tmp_path, text):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/inventory.json").write_text(text)
    for read in (lambda: read_inventory(tmp_path / "archive"), lambda: check_data(DataFolder.at(tmp_path))):
        with pytest.raises(UserError, match=r"inventory\.json .*; delete it, run `download` again"):
            read()


def test_the_check_removes_nothing_outside_of_the_archive(tmp_path):
    (tmp_path / "data/archive").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("mine")
    files = INVENTORY["files"] | {"../../mine.txt": {"size": 3, "sha256": "ab" * 32}}
    (tmp_path / "data/archive/inventory.json").write_text(json.dumps(INVENTORY | {"files": files}))
    with pytest.raises(UserError, match="no file below it"):
        check_data(DataFolder.at(tmp_path / "data"))
    assert (tmp_path / "mine.txt").read_text() == "mine"


def part_list(tmp_path, data: bytes) -> None:
    (tmp_path / "mirror/val").mkdir(parents=True)
    (tmp_path / "mirror/val/k400_val_path.txt").write_bytes(data)
    make_archive(tmp_path / "mirror", tmp_path, ["val"])


@pytest.mark.parametrize("data", [f"val/part_{DIGITS}.tar.gz\n".encode(), b"val/part_\xff.tar.gz", b"val/part_1.tar\0"])
def test_a_list_of_parts_that_is_none_ends_in_a_sentence(tmp_path, data):
    with pytest.raises(UserError, match=r"k400_val_path\.txt.* (is no part|is not text)"):
        part_list(tmp_path, data)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_of_parts_may_have_a_byte_order_mark(tmp_path, encoding):
    with pytest.raises(UserError, match=r"val/part_0\.tar\.gz: the mirror does not have it"):
        part_list(tmp_path, "https://x/400/val/part_0.tar.gz\r\n".encode(encoding))


@pytest.mark.parametrize("text", [DIGITS, f"0-{DIGITS}", "0-99999999999", "٣", "", "-1"])
def test_part_numbers_without_bound_are_refused_before_they_are_counted(text):
    with pytest.raises(UserError, match=r"parts is .{1,110}; write all, or numbers"):
        parse_parts(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x\n", "video_id,path\na,b\n", "video_id,sha256,path\na\n", "video_id,sha256,path\na,b,c,d\n"),
        *("video_id,sha256,path\na,ab,/no\0thing\n", "video_id,sha256,path\na,ab,/no/such\n", "x" * 200_000),
        "video_id,sha256,path\n" + "x" * 200_000,
    ],
)
def test_a_list_of_videos_that_is_none_ends_in_a_sentence(tmp_path, text):
    (tmp_path / "part_0.csv").write_text(text)
    with pytest.raises(UserError, match=r"part_0\.csv is not a whole archive: "):
        list(read_archive(tmp_path / "part_0.csv"))


# records beside shards


CLIPS = [
    *(None, 3, "abc", [None], ["a"], {"a": 1}, [{}], [{"video_id": "a"}], [{"video_id": "a", "offset": 1}]),
    *([{"video_id": "a", "fault": 3}], [{"video_id": "a", "fault": None}], [{"video_id": 7, "fault": "x"}]),
    *([{"video_id": "a", "offset": "1", "size": 2}], [{"video_id": "a", "offset": -1, "size": 2}]),
]


@pytest.mark.parametrize("clips", CLIPS)
def test_a_record_whose_clips_are_none_means_that_the_shard_is_made_anew(tmp_path, clips):
    shard, key = tmp_path / "part_000.tar", make_key("x")
    with ShardWriter(shard) as writer:
        writer.add("a.mp4", b"x")
    write_record(shard, key, 5.0, [])
    assert read_record(shard, key, 5.0) is not None
    record = json.loads(shard.with_suffix(".json").read_text()) | {"clips": clips}
    shard.with_suffix(".json").write_text(json.dumps(record))
    assert read_record(shard, key, 5.0) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 5000, '{"key": null}', '{"key": 7}', '{"key": {}}'])
def test_a_shard_without_a_key_is_not_finished(tmp_path, text):
    (tmp_path / "part_000.json").write_text(text)
    with pytest.raises(UserError, match="is not finished"):
        key_of(tmp_path / "part_000.tar")
