"""The annotation, as the copies in the wild spell it."""

from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.annotations import Annotation, class_key, class_names, read_annotations

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


@pytest.fixture
def csv_file(tmp_path):
    def write(text: str, encoding: str = "utf-8") -> Path:
        (tmp_path / "val.csv").write_text(text, encoding=encoding)
        return tmp_path / "val.csv"

    return write


def test_a_line_becomes_a_file_name_and_a_class(csv_file):
    path = csv_file(HEADER + "climbing a rope,--QUu_4v-s0,84,94,val,0\n")
    assert read_annotations(path, "val") == [Annotation("--QUu_4v-s0_000084_000094", "val", "climbing a rope")]


@pytest.mark.parametrize(
    "line",
    [
        '"abseiling",aaaaaaaaaaa,1.0,11.0,val,0\n',
        "abseiling,aaaaaaaaaaa,1,11,val,0\r\n",
        " abseiling, aaaaaaaaaaa ,1,11",
    ],
)
def test_quotes_floats_and_line_ends_do_not_matter(csv_file, line):
    assert read_annotations(csv_file(HEADER + line), "val") == [
        Annotation("aaaaaaaaaaa_000001_000011", "val", "abseiling")
    ]


def test_a_byte_order_mark_does_not_matter(csv_file):
    path = csv_file(HEADER + "abseiling,aaaaaaaaaaa,1,11,val,0\n", encoding="utf-8-sig")
    assert len(read_annotations(path, "val")) == 1


@pytest.mark.parametrize(
    "text", ["youtube_id,time_start,time_end,split\naaaaaaaaaaa,1,11,test\n", HEADER + ",aaaaaaaaaaa,1,11,test,0\n"]
)
def test_a_test_split_may_have_no_labels(csv_file, text):
    assert read_annotations(csv_file(text), "test") == [Annotation("aaaaaaaaaaa_000001_000011", "test", None)]


def test_a_clip_listed_twice_is_one_clip(csv_file):
    assert len(read_annotations(csv_file(HEADER + "abseiling,aaaaaaaaaaa,1,11,val,0\n" * 2), "val")) == 1


def test_a_clip_of_two_classes_is_refused(csv_file):
    path = csv_file(HEADER + "abseiling,aaaaaaaaaaa,1,11,val,0\nzumba,aaaaaaaaaaa,1,11,val,0\n")
    with pytest.raises(UserError, match=r"val\.csv, line 3: aaaaaaaaaaa_000001_000011 is 'zumba' here and 'abseiling'"):
        read_annotations(path, "val")


@pytest.mark.parametrize("name", ["../../etc/x", "", "a b", ".hidden", "a/b"])
def test_an_id_that_cannot_be_a_file_name_is_refused(csv_file, name):
    with pytest.raises(UserError, match=r"line 2: youtube_id is"):
        read_annotations(csv_file(HEADER + f"abseiling,{name},1,11,val,0\n"), "val")


def test_a_time_that_is_none_is_refused(csv_file):
    with pytest.raises(UserError, match=r"line 2: time_start, time_end are '1', 'soon'"):
        read_annotations(csv_file(HEADER + "abseiling,aaaaaaaaaaa,1,soon,val,0\n"), "val")


def test_ones_own_clips_need_no_times(csv_file):
    path = csv_file("label,youtube_id\nwaving,clip-7\n")
    assert read_annotations(path, "val") == [Annotation("clip-7", "val", "waving")]


def test_labels_are_positions_in_the_sorted_names():
    clips = [
        Annotation(str(i), "val", name) for i, name in enumerate(["zumba", None, "abseiling", "zumba", "air drumming"])
    ]
    assert class_names(clips) == ["abseiling", "air drumming", "zumba"]


def test_three_spellings_are_one_class():
    spellings = ["massaging_persons_head", "massaging person's head", "massaging_person's_head"]
    assert len({class_key(name) for name in spellings}) == 1
    assert class_names([Annotation(name, "val", name) for name in spellings]) == ["massaging person's head"]


def test_classes_that_differ_stay_apart():
    assert class_key("passing American football (in game)") != class_key("passing American football (not in game)")


@pytest.mark.parametrize("label", ['"two\nlines"', "bell\a", "x" * 300])
def test_a_class_whose_name_is_no_line_of_text_is_refused(tmp_path, label):
    (tmp_path / "val.csv").write_text(f"label,youtube_id,time_start,time_end\n{label},abcdefghijk,0,10\n")
    with pytest.raises(UserError, match=r"val\.csv, line \d: .* is no name of a class"):
        read_annotations(tmp_path / "val.csv", "val")
