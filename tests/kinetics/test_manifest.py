"""The manifest: nothing vanishes, nothing is mangled."""

import csv
import dataclasses
import hashlib

import pytest

from actionzoo.errors import UserError
from actionzoo.files.hashes import sha256_of
from actionzoo.kinetics.manifest import (
    StoredClip,
    count_states,
    export_lists,
    label_map,
    list_sha256,
    read_manifest,
    write_manifest,
)
from tests.kinetics.small_clips import clip

NASTY = [
    clip("_-Aa_-Bb_-C_000001_000011", class_name="massaging person's head"),
    clip("--QUuC4vJs0_000084_000094", label=1, class_name="passing American football (in game)"),
    clip("aaaaaaaaaaa_000000_000010", label=2, class_name='comma, "quote"\nand a new line', fps=1 / 3),
    clip("bbbbbbbbbbb_000000_000010", split="test", label=-1, class_name="", reason="中文, „quoted“"),
]
GONE = {"shard": "", "offset": None, "size": None, "num_frames": None, "width": None, "height": None, "fps": None}


def test_every_field_survives_the_file(tmp_path):
    write_manifest(tmp_path / "manifest.csv", NASTY)
    assert sorted(read_manifest(tmp_path / "manifest.csv"), key=str) == sorted(NASTY, key=str)


def test_the_order_given_does_not_matter(tmp_path):
    write_manifest(tmp_path / "a.csv", NASTY)
    write_manifest(tmp_path / "b.csv", NASTY[::-1])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_lines_are_sorted_by_split_then_id_and_end_in_a_line_feed(tmp_path):
    ids = ["b", "_", "-", "B"]
    write_manifest(tmp_path / "m.csv", [clip(name, split=split) for split in ("test", "train", "val") for name in ids])
    clips = read_manifest(tmp_path / "m.csv")
    assert [c.split for c in clips] == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    assert [c.video_id for c in clips[:4]] == ["-", "B", "_", "b"]
    assert b"\r" not in (tmp_path / "m.csv").read_bytes()


def test_a_clip_that_is_not_there_keeps_its_line(tmp_path):
    gone = clip(state="missing", reason="listed, but in no archive", sha256="", **GONE)
    write_manifest(tmp_path / "m.csv", [gone])
    assert list(read_manifest(tmp_path / "m.csv")) == [gone]
    assert not gone.is_usable


def test_nothing_but_the_file_is_left_in_the_folder(tmp_path):
    write_manifest(tmp_path / "m.csv", NASTY)
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_an_unknown_state_names_file_and_line(tmp_path):
    write_manifest(tmp_path / "m.csv", [clip("a"), clip("b", state="fine")])
    with pytest.raises(UserError, match=r"m\.csv, line 3: state is 'fine'"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize("text", ["", "video_id,label\n", "\0"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=r"m\.csv starts with"):
        read_manifest(tmp_path / "m.csv")


def test_a_cut_off_line_is_refused(tmp_path):
    write_manifest(tmp_path / "m.csv", [clip()])
    (tmp_path / "m.csv").write_bytes((tmp_path / "m.csv").read_bytes()[:-90])
    with pytest.raises(UserError, match=r"line 2: \d+ columns instead of 14"):
        read_manifest(tmp_path / "m.csv")


def test_a_missing_manifest_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="resize"):
        read_manifest(tmp_path / "m.csv")


def test_the_label_map_is_the_class_names_by_label():
    assert label_map(NASTY)[:2] == ["massaging person's head", "passing American football (in game)"]


def test_one_label_with_two_names_is_refused():
    with pytest.raises(UserError, match="label 0 is 'abseiling' and"):
        label_map([clip("a"), clip("b", class_name="zumba")])


def test_a_gap_in_the_labels_is_refused():
    with pytest.raises(UserError, match="no clip has label 0"):
        label_map([clip(label=1)])


def test_states_are_counted_split_by_split():
    counts = count_states([clip("a"), clip("b", state="missing"), clip("c", split="train", state="unlisted")])
    assert list(counts) == ["train", "val"]
    assert counts["val"] == {"ok": 1, "replaced": 0, "short": 0, "missing": 1, "corrupt": 0, "unlisted": 0}


def test_exported_lists_hold_the_usable_clips(tmp_path):
    clips = [
        clip("a"),
        clip("b", label=1, class_name="zumba", num_frames=64, state="short"),
        clip("c", state="missing"),
    ]
    written = export_lists(clips, tmp_path / "lists")
    assert {path.name for path in written} == {"val.txt", "label_map.txt"}
    assert (tmp_path / "lists/val.txt").read_text() == "a 250 0\nb 64 1\n"
    assert (tmp_path / "lists/label_map.txt").read_text() == "abseiling\nzumba\n"


def test_a_manifest_knows_its_path_and_the_hash_of_the_bytes_that_were_parsed(tmp_path):
    write_manifest(tmp_path / "m.csv", NASTY)
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest.sha256 == sha256_of(tmp_path / "m.csv")
    assert manifest.path == tmp_path / "m.csv"


def test_a_manifest_is_a_sequence_of_its_clips(tmp_path):
    write_manifest(tmp_path / "m.csv", [clip("a"), clip("b", state="missing"), clip("c")])
    manifest = read_manifest(tmp_path / "m.csv")
    assert len(manifest) == 3 and manifest[0] == clip("a") and manifest[1:] == manifest.clips[1:]
    assert list(manifest) == list(manifest.clips)


def test_the_usable_clips_of_a_split_have_a_span_and_a_shape(tmp_path):
    gone = clip("b", state="missing", **GONE)
    write_manifest(tmp_path / "m.csv", [clip("a", split="train"), clip("a"), gone, clip("c", state="short")])
    manifest = read_manifest(tmp_path / "m.csv")
    assert [c.video_id for c in manifest.of_split("val")] == ["a", "b", "c"]
    assert [c.video_id for c in manifest.usable("val")] == ["a", "c"]
    assert manifest.usable("train") == [StoredClip(**dataclasses.asdict(clip("a", split="train")))]


def test_a_usable_clip_without_a_span_is_refused(tmp_path):
    write_manifest(tmp_path / "m.csv", [clip("a", offset=None, width=None)])
    with pytest.raises(UserError, match="a is ok, but its offset, width is empty; make the manifest anew"):
        read_manifest(tmp_path / "m.csv").usable("val")


def test_the_class_list_beside_a_manifest_names_all_classes(tmp_path):
    write_manifest(tmp_path / "m.csv", [clip()], ["abseiling", "zumba"])
    assert read_manifest(tmp_path / "m.csv").classes == ["abseiling", "zumba"]
    write_manifest(tmp_path / "m.csv", [clip()])
    assert read_manifest(tmp_path / "m.csv").classes == ["abseiling"]


def test_the_hash_of_a_list_does_not_depend_on_which_clips_were_found():
    def line(video_id, label=0, split="val", state="ok"):
        return clip(video_id, label=label, split=split, state=state)

    here = [line("b", 1), line("a"), line("c"), line("a", split="train"), line("x", -1, state="unlisted")]
    there = [line("c", state="missing"), line("b", 1, state="corrupt"), line("a", state="short")]
    assert list_sha256(here, "val") == list_sha256(there, "val")
    assert list_sha256(there, "val") == hashlib.sha256(b"a,0\nb,1\nc,0\n").hexdigest()
    assert list_sha256(there[:2], "val") != list_sha256(there, "val")
    assert list_sha256([line("c", 1), *there[1:]], "val") != list_sha256(there, "val")


FOREIGN = '=HYPERLINK("http://example.org")'


def test_no_text_of_others_is_a_formula_in_the_file_and_all_come_back(tmp_path):
    clips = [clip("@a", class_name=FOREIGN, reason="+1"), clip("b", class_name=f"'{FOREIGN}", reason="\t=1")]
    write_manifest(tmp_path / "m.csv", clips)
    assert list(read_manifest(tmp_path / "m.csv")) == clips
    with open(tmp_path / "m.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    texts = [line[column] for line in lines for column in ("video_id", "class_name", "reason")]
    assert texts == ["'@a", f"'{FOREIGN}", "'+1", "b", f"''{FOREIGN}", "'\t=1"]


def test_ids_that_begin_with_a_minus_stand_as_they_are_and_older_files_read_as_before(tmp_path):
    clips = [clip("-0B3eQUuC4v_000084_000094", label=-1, class_name="")]
    write_manifest(tmp_path / "m.csv", clips)
    text = (tmp_path / "m.csv").read_text()
    assert text.splitlines()[1].startswith("-0B3eQUuC4v_000084_000094,val,-1,,ok,")
    (tmp_path / "m.csv").write_text(text.replace("-1,,", f'-1,"{FOREIGN.replace(chr(34), chr(34) * 2)}",'))
    assert [old.class_name for old in read_manifest(tmp_path / "m.csv")] == [FOREIGN]
