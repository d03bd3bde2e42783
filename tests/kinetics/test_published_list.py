"""Published lists: read in every form that they are published in, and compared with the clips that are here."""

import hashlib

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics import published_list
from actionzoo.kinetics.manifest import Clip
from actionzoo.kinetics.published_list import ListedClip, choose, fetch_list, read_published
from actionzoo.kinetics.serve import serve

CLASSES = ["abseiling", "massaging person's head", "yoga"]
LIST = "AAAAAAAAAAA_000001_000011 300 0\nBBBBBBBBBBB_000001_000011 250 2\nCCCCCCCCCCC_000001_000011 300 1\n"


def clip(letter: str, label: int, num_frames: int = 300, state: str = "ok") -> Clip:
    return Clip(
        video_id=f"{letter * 11}_000001_000011",
        split="val",
        label=label,
        class_name=CLASSES[label],
        state=state,
        num_frames=num_frames if state == "ok" else None,
    )


def given(tmp_path, text: str | bytes, label_map: str | bytes | None = None):
    paths = []
    for name, content in (("list.txt", text), ("map.txt", label_map)):
        if content is not None:
            paths.append(tmp_path / name)
            paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_published(*paths)


def test_a_list_and_its_hash(tmp_path):
    published = given(tmp_path, LIST)
    assert published.clips[1] == ListedClip("BBBBBBBBBBB_000001_000011", 250, 2) and len(published.clips) == 3
    assert published.sha256 == hashlib.sha256(LIST.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        LIST.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + LIST.encode(),
        LIST.encode("utf-16"),
        LIST.replace(" ", "\t"),
        LIST.replace(" ", ","),
        LIST + "\n\n",
        LIST.replace(" ", ".mp4 ", 1),
        "".join(f"/data/val 256/massaging person's head/{line}\n" for line in LIST.splitlines()),
        "".join(f"val\\yoga 2\\{line}\n" for line in LIST.splitlines()),
    ],
    ids=["CRLF", "BOM", "UTF-16", "tabs", "commas", "blank lines", "endings", "folders", "backslashes"],
)
def test_a_list_is_read_however_it_is_written(tmp_path, text):
    clips = [clip("A", 0), clip("B", 2, 250), clip("C", 1)]
    chosen = choose(given(tmp_path, text), clips, CLASSES)
    assert list(chosen.clips) == clips and not (chosen.missing or chosen.other_frames or chosen.other_label)


@pytest.mark.parametrize(
    "label_map",
    [
        "\n".join(CLASSES),
        "0 abseiling\n1 massaging_persons_head\n2 yoga\n",
        "yoga 2\r\nabseiling 0\r\nmassaging person's head 1\r\n",
        "1 abseiling\n2 massaging person's head\n3 yoga\n",
        '"abseiling"\n"massaging person\'s head"\n"yoga"\n',
    ],
    ids=["names", "label first", "label last", "from 1", "quoted"],
)
def test_a_label_map_is_read_however_it_is_written(tmp_path, label_map):
    published = given(tmp_path, LIST, label_map)
    assert choose(published, [clip("A", 0), clip("B", 2, 250), clip("C", 1)], CLASSES).other_label == ()


def test_clips_that_are_missing_or_differ_are_named(tmp_path):
    clips = [clip("A", 0, 299), clip("B", 1, 250), clip("C", 1, state="corrupt"), clip("D", 2)]
    chosen = choose(given(tmp_path, LIST + "EEEEEEEEEEE_000001_000011 300 0\n"), clips, CLASSES)
    assert [found.video_id[0] for found in chosen.clips] == ["A", "B"] and chosen.listed == 4
    assert chosen.missing == (
        "CCCCCCCCCCC_000001_000011: corrupt",
        "EEEEEEEEEEE_000001_000011: not in the manifest",
    )
    assert chosen.other_frames == ("AAAAAAAAAAA_000001_000011: 299 frames, the list has 300",)
    assert chosen.other_label == ('BBBBBBBBBBB_000001_000011: "massaging person\'s head", the list has label 2',)
    assert chosen.clips[1].label == 2  # an accuracy on the list is by the list's labels


def test_labels_go_by_the_names_of_the_map(tmp_path):
    published = given(tmp_path, LIST, "yoga\nabseiling\nmassaging persons head\n")
    chosen = choose(published, [clip("A", 2), clip("B", 1, 250), clip("C", 0)], CLASSES)
    assert chosen.other_label == () and [found.label for found in chosen.clips] == [2, 1, 0]


def test_a_class_that_the_data_set_lacks_is_named(tmp_path):
    published = given(tmp_path, LIST, "zumba\nmassaging person's head\nyoga\n")
    chosen = choose(published, [clip("A", 0), clip("B", 2, 250)], CLASSES)
    assert chosen.other_label == (
        "AAAAAAAAAAA_000001_000011: the list has 'zumba', which is none of the data set's classes",
    )


def test_a_bare_video_id_is_the_one_clip_of_that_video(tmp_path):
    chosen = choose(given(tmp_path, "abseiling/AAAAAAAAAAA 300 0\n"), [clip("A", 0)], CLASSES)
    assert chosen.missing == () and len(chosen.clips) == 1


def test_the_first_20_of_a_kind_are_shown_and_all_are_kept(tmp_path):
    text = "".join(f"{number:011d}_000001_000011 300 0\n" for number in range(50)) + LIST
    chosen = choose(given(tmp_path, text), [clip("A", 0)], CLASSES)
    assert len(chosen.missing) == 52 and chosen.text().count("not in the manifest") == 20
    assert "52 missing" in chosen.text() and "… and 32 more" in chosen.text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no clip"),
        ("one\n", "line 1: 'one' is not"),
        (LIST + "AAAAAAAAAAA_000001_000011 299 0\n", "line 4: .* is listed before"),
        ("a 300 -1\n", "line 1"),
        ("a 300 " + "9" * 5000, "line 1"),
        ("x" * 5000 + " 300 0\n", "line 1 has more than 4096"),
        (b"a 300 0\n\xff\xfe\xff", "is not text in UTF-8"),
        (b"a\0 300 0\n", "zero bytes"),
    ],
)
def test_a_file_that_is_no_list_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"list\.txt.*{message}"):
        given(tmp_path, text)


@pytest.mark.parametrize("label_map", ["", "yoga\nYoga\n", "0 a\n2 b\n", "0 a\n0 b\n"])
def test_a_file_that_is_no_label_map_is_refused(tmp_path, label_map):
    with pytest.raises(UserError, match=r"map\.txt"):
        given(tmp_path, LIST, label_map)


def test_a_label_beyond_the_map_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 2: label 2, and the label map has 2 classes"):
        given(tmp_path, LIST, "a\nb\n")


def test_a_list_of_other_clips_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of the 3 clips of the published list is usable here"):
        choose(given(tmp_path, LIST), [clip("D", 0)], CLASSES)


def test_a_list_behind_a_url_is_fetched_once(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "val list.txt").write_text(LIST)
    with serve(tmp_path / "site") as url:
        path = fetch_list(f"{url}/val%20list.txt", tmp_path / "lists")
    assert path.read_text() == LIST
    assert fetch_list(f"{url}/val%20list.txt", tmp_path / "lists") == path  # the server is gone


def test_a_list_that_cannot_be_had_says_where_to_put_it(tmp_path):
    (tmp_path / "site").mkdir()
    with serve(tmp_path / "site") as url, pytest.raises(UserError, match=r"cannot be had: 404 .* put the file where"):
        fetch_list(f"{url}/none.txt", tmp_path / "lists")
    with pytest.raises(UserError, match=r"none\.txt, a published list .* is not there"):
        fetch_list("none.txt", tmp_path / "lists", tmp_path)


def test_a_list_larger_than_any_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(published_list, "MAX_LIST_BYTES", 10)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "list.txt").write_text(LIST)
    with serve(tmp_path / "site") as url, pytest.raises(UserError, match="more than 0 MiB, the most that is fetched"):
        fetch_list(f"{url}/list.txt", tmp_path / "lists")
