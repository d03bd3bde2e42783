"""A folder of one's own videos: whatever it holds, each video ends in the manifest or in a sentence."""

import contextlib
import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
import yaml

from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.annotations import class_key
from actionzoo.kinetics.archives import read_archive
from actionzoo.kinetics.download import TERMS
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.folder import list_folder
from actionzoo.kinetics.inventory import FetchedSplit, read_inventory
from actionzoo.kinetics.manifest import Clip, count_states, export_lists, label_map, read_manifest
from actionzoo.params import load_params
from tests.kinetics.data_stages import make_archive, make_videos
from tests.kinetics.files import contents, versions
from tests.kinetics.small_films import film

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def video() -> bytes:
    return film(num_frames=8, height=48, width=64)


@pytest.fixture(scope="module")
def longer() -> bytes:
    return film(num_frames=9, height=48, width=64)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "videos"


@pytest.fixture
def fill(root):
    def fill(files: dict[str, bytes | str]) -> None:
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    return fill


@pytest.fixture
def listed(root, tmp_path):
    def run(splits=("train", "val"), parts="all", **options) -> str:
        execution = Execution(**{"scratch": tmp_path / "scratch", "jobs": 2} | options)
        return list_folder(f"folder:{root}", DataFolder.at(tmp_path / "archive"), execution, splits=splits, parts=parts)

    return run


@pytest.fixture
def prepared(listed, tmp_path):
    """Lists the folder, resizes what is listed; gives the manifest's lines."""

    def run(**options) -> list[Clip]:
        listed(**options)
        make_videos(tmp_path / "archive", tmp_path / "videos_32", 32)
        return read_manifest(tmp_path / "videos_32/manifest.csv")

    return run


def states(clips: list[Clip]) -> dict[str, str]:
    return {f"{clip.split} {clip.video_id}": clip.state for clip in clips}


def classes(clips: list[Clip]) -> dict[str, str]:
    return {f"{clip.split} {clip.video_id}": clip.class_name for clip in clips}


def sources(archive: Path) -> dict[str, dict[str, str]]:
    """Path -> its line of sources.csv."""
    with open(archive / "sources.csv", encoding="utf-8", newline="") as file:
        return {line["path"]: line for line in csv.DictReader(file)}


# layouts


def test_class_folders_end_in_a_full_manifest(fill, prepared, video, longer):
    fill(
        {"train/a rope/1.mp4": video, "train/waving/2.MKV": longer, "val/waving/1.mp4": video, "test/waving/9.avi": b""}
    )
    clips = prepared(splits=("train", "val", "test"))
    assert states(clips) == {"train 1": "ok", "train 2": "ok", "val 1": "ok", "test 9": "corrupt"}
    assert classes(clips) == {"train 1": "a rope", "train 2": "waving", "val 1": "waving", "test 9": "waving"}
    assert label_map(clips) == ["a rope", "waving"]
    assert [clip.num_frames for clip in clips] == [8, 9, 8, None]
    assert clips[0].sha256 == hashlib.sha256(video).hexdigest()


@pytest.mark.parametrize(
    "header", ["label,video", "video,label", " Label , Video,remark".replace("L", "l").replace("V", "v")]
)
def test_a_csv_of_paths_ends_in_a_full_manifest(fill, prepared, video, header):
    cells = {"label": "waving", "video": "clips/deep down/1.mp4", "remark": "nice"}
    row = ",".join(cells[name.strip()] for name in header.split(","))
    fill({"clips/deep down/1.mp4": video, "2.m4v": video, "val.csv": "video,label\n2.m4v,waving\n"})
    fill({"train.csv": f"{header}\n{row}\n{row}\n"})
    clips = prepared()
    assert states(clips) == {"train 1": "ok", "val 2": "ok"}  # whatever a listed file is called
    assert set(classes(clips).values()) == {"waving"}


def test_a_csv_may_lie_in_the_folder_annotations_and_go_with_class_folders(fill, prepared, video):
    fill({"train/x/1.mp4": video, "train/y/2.mp4": video, "val/x/3.mp4": video})
    fill({"annotations/train.csv": "label,video\nz,train/x/1.mp4\n"})
    clips = prepared()
    assert states(clips) == {"train 1": "ok", "train 2": "unlisted", "val 3": "ok"}
    assert classes(clips) == {"train 1": "z", "train 2": "", "val 3": "x"}


def test_one_csv_may_name_the_splits(fill, prepared, video):
    lines = ["split,video,label", "train,1.mp4,a", "validation,2.mp4,a", "test,3.mp4,", "train,3.mp4,b"]
    fill({"1.mp4": video, "2.mp4": video, "3.mp4": video, "annotations.csv": "\n".join(lines)})
    clips = prepared(splits=("train", "val", "test"))
    assert classes(clips) == {"train 1": "a", "train 3": "b", "val 2": "a", "test 3": ""}
    assert {clip.state for clip in clips} == {"ok"}


@pytest.mark.slow
def test_a_crawled_kinetics_gives_the_same_clips_as_the_mirror(tiny_mirror, root, prepared, tmp_path):
    """In the crawler's layout, with class names in its spelling, and with Kinetics' own CSV files."""
    for split in ("train", "val"):
        table = tiny_mirror / f"400/annotations/{split}.csv"
        with open(table, newline="") as lines:
            name_of = {line["youtube_id"]: line["label"] for line in csv.DictReader(lines)}
        for number in (0, 1):
            for name, data in read_archive(tiny_mirror / f"400/{split}/part_{number}.tar.gz"):
                folder = root / split / class_key(name_of.get(name[:11], "zumba")).replace(" ", "_")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.mp4").write_bytes(data)
        (root / f"{split}.csv").write_bytes(table.read_bytes())
    by_csv = prepared()
    counts = {"ok": 3, "replaced": 0, "short": 0, "missing": 1, "corrupt": 2, "unlisted": 1}
    assert count_states(by_csv)["train"] == counts
    (root / "train.csv").unlink()
    (root / "val.csv").unlink()
    by_folder = prepared()
    archive = make_archive(tiny_mirror, tmp_path / "m", ["val"])
    sums = {
        name: hashlib.sha256(data).hexdigest()
        for n in (0, 1)
        for name, data in read_archive(archive / f"val/part_{n}.tar.gz")
    }
    for clips in (by_csv, by_folder):
        assert {clip.video_id: clip.sha256 for clip in clips if clip.split == "val"} == sums
        keys = [class_key(name) for name in label_map(clip for clip in clips if clip.is_listed)]
        assert keys[:4] == [
            "climbing a rope",
            "massaging persons head",
            "passing american football in game",
            "using remote controller not gaming",
        ]


def test_a_test_split_needs_no_labels_and_need_not_be_there(fill, prepared, listed, video):
    fill({"train/a/1.mp4": video, "val/a/1.mp4": video})
    assert "; train from train/; val from val/ (" in listed(splits=("train", "val", "test"))
    fill({"test/5.mp4": video})
    clips = prepared(splits=("train", "val", "test"))
    assert [(clip.video_id, clip.label) for clip in clips if clip.split == "test"] == [("5", -1)]


def test_labels_are_numbered_over_all_splits_requested_or_not(fill, prepared, video):
    fill({"train/b/1.mp4": video, "val/a/1.mp4": video})
    assert [(clip.split, clip.label) for clip in prepared(splits=["train"])] == [("train", 1)]


# names, links, and what is no video


def test_any_name_becomes_a_word_and_none_is_lost(fill, prepared, video, root, tmp_path):
    names = ["a b.mp4", "a_b.mp4", "a\tb.mp4", "-rf.mp4", 'it\'s "so", (yes).mp4', "é.mp4", "e\u0301.mp4", "#1%20.mp4"]
    names += [
        "line\nbreak\r.mp4",
        "back\\slash.mp4",
        "c.mp4.mp4",
        "no\udcff.mp4",
        "c.webm",
        "\u202e.mov",
        "$(touch x).mp4",
    ]
    assert len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    fill({f'train/cl\'ass, "one"/{name}': video for name in names})
    fill({"train/two\n/c.webm": video, "val/\udcfe/1.mp4": video, 'val/cl\'ass, "one"/2.mp4': video})
    clips = prepared()
    assert len(clips) == len(names) + 3 and {clip.state for clip in clips} == {"ok"}
    for clip in clips:
        assert clip.video_id.isprintable() and not set(clip.video_id) & set(" /\\\t\n") and clip.video_id[0] != "."
    assert {clip.class_name for clip in clips} == {'cl\'ass, "one"', "two", "_"}
    listing = sources(tmp_path / "archive")
    assert len(listing) == len(clips) and len({line["video_id"] for line in listing.values()}) == len(clips)
    assert listing['train/cl\'ass, "one"/-rf.mp4']["video_id"] == "-rf"
    assert listing['train/cl\'ass, "one"/a b.mp4']["video_id"].startswith("a_b_")  # for there is a_b
    for path in export_lists(clips, tmp_path / "lists"):
        if path.name != "label_map.txt":
            assert all(len(line.split(" ")) == 3 for line in path.read_text().splitlines())


def test_names_that_are_formulas_run_in_no_list_and_keep_their_videos(fill, prepared, video, tmp_path):
    fill({"train/waving/=1+1.mp4": video, "train/waving/@SUM(1).mp4": video, "val/waving/-a.mp4": video})
    clips = prepared()
    assert [clip.state for clip in clips] == ["ok"] * 3 and {clip.class_name for clip in clips} == {"waving"}
    for path in (tmp_path / "archive").rglob("*.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))], path


def test_the_same_name_in_two_classes_is_two_videos(fill, prepared, video, longer):
    fill({"train/a/1.mp4": video, "train/b/1.mp4": longer, "train/a/2.mp4": video, "val/a/1.mp4": video})
    clips = prepared()
    ids = {clip.class_name: clip.video_id for clip in clips if clip.num_frames and clip.video_id.startswith("1_")}
    assert len(clips) == 4 and len(set(ids.values())) == 2
    assert {clip.video_id for clip in clips if not clip.video_id.startswith("1_")} == {"1", "2"}
    assert ids["a"] == f"1_{hashlib.sha256(b'train/a/1.mp4').hexdigest()[:8]}"


def test_videos_that_cannot_be_used_are_missing_with_their_reason(fill, prepared, listed, video, root, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(video)
    fill({"train/a/fine.mp4": video, "val/a/1.mp4": video, "elsewhere/inside.mp4": video})
    links = {"out": "../../../secret.mp4", "dangling": "nothing.mp4", "loop": "loop.mp4"}
    links |= {"absolute": str(tmp_path / "secret.mp4"), "inside": "../../elsewhere/inside.mp4"}
    for name, target in links.items():
        (root / f"train/a/{name}.mp4").symlink_to(target)
    os.mkfifo(root / "train/a/pipe.mp4")
    with open(root / "train/a/huge.mp4", "wb") as file:
        file.truncate(2**30 + 1)  # a hole, no disk is filled
    fill({"train/loose.mp4": video})
    found = states(prepared())
    lost = ("out", "dangling", "loop", "absolute", "pipe", "huge")
    assert found == {f"train {name}": "missing" for name in lost} | {
        "train fine": "ok",
        "train inside": "ok",
        "val 1": "ok",
    }
    reasons = {path: line["reason"] for path, line in sources(tmp_path / "archive").items() if line["reason"]}
    loop = reasons.pop("train/a/loop.mp4")
    assert "loop" in loop or "levels of symbolic links" in loop
    assert reasons == {
        "train/a/out.mp4": "leads out of the folder",
        "train/a/absolute.mp4": "leads out of the folder",
        "train/a/dangling.mp4": "a link to nothing",
        "train/a/pipe.mp4": "is no regular file",
        "train/a/huge.mp4": "1.1 GB; cut it into clips",
        "train/loose.mp4": "in no class folder",
    }
    printed = listed()
    assert "left out: train, train/a/out.mp4: leads out of the folder\n" in printed
    assert "2 leads out of the folder" in printed.splitlines()[-1]


def test_a_csv_leads_nowhere_outside(fill, prepared, video, root, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(video)
    fill({"ok.mp4": video, "val/a/1.mp4": video})
    lines = ["../secret.mp4", str(tmp_path / "secret.mp4"), "gone.mp4", "sub/../ok.mp4", "val"]
    fill({"train.csv": "label,video\n" + "".join(f"a,{line}\n" for line in lines)})
    found = states(prepared())
    assert found["train ok"] == "ok" and found["train gone"] == found["train val"] == "missing"
    assert sorted(found.values()) == ["missing"] * 4 + ["ok"] * 2
    reasons = {line["path"]: line["reason"] for line in sources(tmp_path / "archive").values() if line["reason"]}
    assert reasons["../secret.mp4"] == "leads out of the folder" and reasons["gone.mp4"] == "is not there"


@pytest.mark.parametrize("place", ["train/linked", "train/a/linked", "train"])
def test_links_to_folders_are_refused_with_the_way_out(fill, listed, video, root, tmp_path, place):
    fill({"val/a/1.mp4": video})
    (tmp_path / "outside/a").mkdir(parents=True)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=rf"{place} is a link .* put the folder itself there"):
        listed()


def test_a_split_may_be_a_link_inside_the_folder(fill, prepared, video, root):
    fill({"train_256/a/1.mp4": video, "val/a/1.mp4": video})
    (root / "train").symlink_to("train_256")
    assert states(prepared()) == {"train 1": "ok", "val 1": "ok"}


@contextlib.contextmanager
def unprivileged():
    """Not as root, who may read everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_an_unreadable_video_is_reported_and_tried_again(video):
    with unprivileged(), tempfile.TemporaryDirectory() as name:
        root, archive = Path(name, "videos"), Path(name, "archive")
        for path in ("train/a/1.mp4", "train/a/2.mp4", "val/a/1.mp4"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(video)

        def listed() -> str:
            execution = Execution(scratch=Path(name, "scratch"))
            return list_folder(
                f"folder:{root}", DataFolder.at(archive), execution, splits=["train", "val"], parts="all"
            )

        (root / "train/a/2.mp4").chmod(0)
        assert "left out: train, train/a/2.mp4: cannot be read: Permission denied\n" in listed()
        assert [name for name, _ in read_archive(archive / "train/part_0.csv")] == ["1"]
        assert sources(archive)["train/a/2.mp4"]["reason"] == "cannot be read: Permission denied"
        (root / "train/a/2.mp4").chmod(0o600)
        assert "3 videos in 2 lists, 0.00 GB, 1 of them read now" in listed()
        (root / "train/a").chmod(0)
        with pytest.raises(UserError, match="train/a: Permission denied; make it readable"):
            listed()
        (root / "train/a").chmod(0o700)


def test_other_files_are_skipped_and_counted(fill, listed, video):
    fill(
        {
            "train/a/1.mp4": video,
            "train/a/1.txt": "x",
            "train/a/._1.mp4": "x",
            "train/README": "x",
            "val/a/1.mp4": video,
        }
    )
    fill({"train/.hidden/2.mp4": video, "other/3.mp4": video})
    last_line = listed()
    assert "download: 2 videos in 2 lists, 0.00 GB, 2 of them read now; train from train/; val from val/" in last_line
    assert "passed over: 1 without ending, 1 .txt (" in last_line and "left out" not in last_line


# CSV files against the folder


def test_listed_and_not_there_is_missing_there_and_not_listed_is_unlisted(fill, prepared, video, root, tmp_path):
    fill({"train/x/abcdefghijk_000001_000011.mp4": video, "stray.mp4": video, "val/x/9.mp4": b"never read"})
    lines = "waving,abcdefghijk,1,11,train,0\nwaving,lmnopqrstuv,5,15,train,0\n"
    fill({"train.csv": "label,youtube_id,time_start,time_end,split,is_cc\n" + lines})
    fill({"val.csv": "label,video\nwaving,train/x/abcdefghijk_000001_000011.mp4\n"})
    clips = prepared()
    assert states(clips) == {
        "train abcdefghijk_000001_000011": "ok",
        "train lmnopqrstuv_000005_000015": "missing",
        "train stray": "unlisted",
        "val 9": "unlisted",
        "val abcdefghijk_000001_000011": "ok",
    }
    assert read_inventory(tmp_path / "archive").splits["train"] == FetchedSplit((0, 1), 2)


def test_a_clip_that_is_there_twice_uses_the_copy_that_decodes(fill, prepared, video):
    name = "abcdefghijk_000001_000011.mp4"
    fill({f"train/a/{name}": b"broken", f"train/b/{name}": video, f"val/b/{name}": video})
    table = "label,youtube_id,time_start,time_end\nwaving,abcdefghijk,1,11\n"
    fill({"train.csv": table, "val.csv": table})
    assert [(clip.state, clip.split) for clip in prepared()] == [("ok", "train"), ("ok", "val")]


def test_unlisted_files_change_no_name_of_listed_ones(fill, prepared, video):
    fill(
        {
            "1.mp4": video,
            "other/1.mp4": video,
            "train.csv": "label,video\na,1.mp4\n",
            "val.csv": "label,video\na,1.mp4\n",
        }
    )
    unlisted = f"train 1_{hashlib.sha256(b'other/1.mp4').hexdigest()[:8]}"
    assert states(prepared()) == {"train 1": "ok", "val 1": "ok", unlisted: "unlisted"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("1.mp4,waving\n", "starts with '1.mp4,waving'; a column video or youtube_id is needed"),
        ("label;video\na;1.mp4\n", "a column video or youtube_id is needed"),
        ("label,video\n,1.mp4\n", "line 2: there is no label, which every video of train needs"),
        ("label,video\na,\n", "line 2: video is empty"),
        ("label,video\na,1.mp4\nb,./1.mp4\n", "line 3: 1.mp4 is 'b', above 'a'"),
        ("label,youtube_id,time_start,time_end\na,xyz,1,soon\n", "line 2: time_start, time_end are '1', 'soon'"),
        (b"label,video\n\xe9t\xe9,1.mp4\n", "is not text in UTF-8 .*; save it as one"),
        ("label,video\n", r"train \(train.csv\) has no video that can be used: it is empty"),
        ("label,video\na,2.mp4\na,3.mp4", "train .* has no video that can be used: 2 is not there"),
    ],
)
def test_a_csv_that_says_nothing_sound_is_named(fill, listed, video, table, message):
    fill({"1.mp4": video, "val/a/1.mp4": video, "train.csv": table})
    with pytest.raises(UserError, match=message):
        listed()


def test_a_split_in_one_csv_that_is_none_is_named(fill, listed, video):
    fill({"1.mp4": video, "annotations.csv": "split,label,video\ntrain,a,1.mp4\nvalid,a,1.mp4\n"})
    with pytest.raises(UserError, match=r"annotations\.csv, line 3: split is 'valid', not one of train, val, test"):
        listed()


def test_two_csv_files_that_say_the_same_are_one_too_many(fill, listed, video):
    fill({"train.csv": "label,video\n", "annotations/train.csv": "label,video\n"})
    with pytest.raises(UserError, match=r"train\.csv and .*annotations/train\.csv both say .* remove one"):
        listed()
    fill({"annotations.csv": "label,video\n"})
    with pytest.raises(UserError, match=r"annotations\.csv and .*train\.csv both say"):
        listed()


def test_class_folders_without_splits_are_refused_with_both_ways_out(fill, listed, video):
    fill({"waving/1.mp4": video, "running/1.mp4": video})
    with pytest.raises(UserError) as error:
        listed()
    for text in (
        "says nothing of train and val",
        "but running, waving.",
        "Sort the videos into train/<class>/",
        "label,video",
    ):
        assert text in str(error.value)


def test_videos_without_class_folders_are_named(fill, listed, video):
    fill({"train/1.mp4": video, "val/a/1.mp4": video})
    with pytest.raises(UserError, match=r"train \(train/\) has no video that can be used: 1 in no class folder"):
        listed()


def test_a_folder_that_is_not_there_is_named(listed, root):
    with pytest.raises(UserError, match=rf"data source folder:{root}: {root} is no folder"):
        listed()


# again, and with changes


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("actionzoo.kinetics.folder.VIDEOS_PER_PART", 4)


def noise(number: int, size: int = 1000) -> bytes:
    return hashlib.shake_256(str(number).encode()).digest(size)


def many(numbers) -> dict[str, bytes]:
    return {f"train/{'ab'[number % 2]}/{number}.mp4": noise(number) for number in numbers} | {"val/a/v.mp4": noise(0)}


def test_a_second_run_touches_and_reads_nothing(fill, listed, tmp_path, small_parts):
    fill(many(range(20)))
    assert "21 of them read now" in listed()
    before = versions(tmp_path / "archive")
    assert ", 0 of them read now" in listed()
    assert versions(tmp_path / "archive") == before


def test_without_scratch_it_comes_to_the_same(fill, listed, tmp_path, small_parts):
    fill(many(range(20)))
    listed()
    before = versions(tmp_path / "archive")
    assert "21 of them read now" in listed(scratch=tmp_path / "another", jobs=1)
    assert versions(tmp_path / "archive") == before


def test_a_video_more_changes_its_own_part_and_at_most_another(fill, listed, tmp_path, small_parts):
    """Grown one by one from 12 to 20 videos, so from 3 parts to 5."""
    fill(many(range(12)))
    listed()
    for number in range(12, 20):
        before = read_inventory(tmp_path / "archive").files
        fill({f"train/a/{number}.mp4": noise(number)})
        assert ", 1 of them read now" in listed()
        after = read_inventory(tmp_path / "archive").files
        changed = [name for name in after if name.startswith("train/") and after[name] != before.get(name)]
        assert len(changed) == 1 or (len(after) > len(before) and len(changed) <= 3)  # the new one, and whom it robbed
    inventory = read_inventory(tmp_path / "archive")
    assert inventory.splits["train"] == FetchedSplit((0, 1, 2, 3, 4), 5)
    names = [name for number in range(5) for name, _ in read_archive(tmp_path / f"archive/train/part_{number}.csv")]
    assert sorted(names, key=int) == [str(number) for number in range(20)]


def test_the_parts_do_not_depend_on_what_was_there_before(fill, listed, tmp_path, root, small_parts):
    fill(many(range(20)))
    listed()
    for number in range(9, 20):
        (root / f"train/{'ab'[number % 2]}/{number}.mp4").unlink()
    listed()
    grown = contents(tmp_path / "archive")
    execution = Execution(scratch=tmp_path / "s", jobs=2)
    list_folder(f"folder:{root}", DataFolder.at(tmp_path / "fresh"), execution, splits=["train", "val"], parts="all")
    assert grown == contents(tmp_path / "fresh")


def test_changed_removed_and_new_videos_are_noticed_and_only_their_shards_made_again(
    fill, prepared, root, video, longer, tmp_path, small_parts
):
    fill({f"train/a/{number}.mp4": video for number in range(8)} | {"val/a/v.mp4": video})
    prepared()
    before = versions(tmp_path / "videos_32")
    fill({"train/a/1.mp4": longer})
    clips = prepared()
    assert {clip.video_id: clip.num_frames for clip in clips}["1"] == 9
    after = versions(tmp_path / "videos_32")
    assert len([name for name in after if name.endswith(".tar") and after[name] != before.get(name)]) == 1
    (root / "train/a/1.mp4").unlink()
    fill({"val/b/new.mp4": longer})
    assert states(prepared()) == {f"train {n}": "ok" for n in (0, *range(2, 8))} | {"val v": "ok", "val new": "ok"}


def test_a_folder_that_moved_costs_no_shard(fill, prepared, root, video, tmp_path, listed):
    fill({"train/a/1.mp4": video, "val/a/v.mp4": video})
    prepared()
    before = versions(tmp_path / "videos_32")
    root.rename(tmp_path / "moved")
    root.symlink_to("moved")
    prepared()
    after = versions(tmp_path / "videos_32")
    assert {name: after[name] for name in before if name.endswith(".tar")} == {
        name: version for name, version in before.items() if name.endswith(".tar")
    }
    assert str(tmp_path / "moved/train") in (tmp_path / "archive/train/part_0.csv").read_text()


@pytest.mark.parametrize("change", ["rewrite", "remove"])
def test_a_video_that_changed_since_it_was_listed_is_named_and_not_used(
    fill, listed, prepared, root, video, longer, tmp_path, change
):
    fill({"train/a/1.mp4": video, "val/a/v.mp4": video})
    listed()
    (root / "train/a/1.mp4").write_bytes(longer) if change == "rewrite" else (root / "train/a/1.mp4").unlink()
    message = r"1\.mp4 has changed since it was listed; delete part_0\.csv and run the stage `download`"
    if change == "remove":
        message = r"1\.mp4: No such file or directory; delete part_0\.csv and run the stage `download`"
    with pytest.raises(UserError, match=message):
        list(read_archive(tmp_path / "archive/train/part_0.csv"))
    fill({"train/a/2.mp4": longer})
    assert "ok" in states(prepared()).values()


def test_a_list_that_was_deleted_has_its_videos_read_again(fill, listed, tmp_path, small_parts):
    fill(many(range(20)))
    listed()
    before = contents(tmp_path / "archive")
    lines = (tmp_path / "archive/train/part_2.csv").read_text().count(".mp4")
    (tmp_path / "archive/train/part_2.csv").unlink()
    assert f", {lines} of them read now" in listed()
    assert (tmp_path / "archive/train/part_2.csv").read_bytes() == before["train/part_2.csv"]


def test_only_the_parts_asked_for_are_listed(fill, listed, tmp_path, small_parts):
    fill(many(range(20)))
    listed(parts="0,3")
    assert read_inventory(tmp_path / "archive").splits == {
        "train": FetchedSplit((0, 3), 5),
        "val": FetchedSplit((0,), 1),
    }
    assert {path.name for path in (tmp_path / "archive/train").iterdir()} == {"part_0.csv", "part_3.csv"}
    with pytest.raises(UserError, match="parts is '7', and train has 5 of them, from 0 on"):
        listed(parts="7")


def test_progress_ends_at_its_total(fill, listed, small_parts):
    reports = []
    fill(many(range(20)))
    listed(on_progress=lambda *state: reports.append(state))
    assert reports[-1] == ("read, bytes", 21_000, 21_000)


KILLED = """
import os, signal, sys
from pathlib import Path
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics import folder
from actionzoo.kinetics.execution import Execution
folder.VIDEOS_PER_PART = 4
limit = float(sys.argv[2])
def on_progress(what, done, total):
    if done > limit * total:
        os.kill(os.getpid(), signal.SIGKILL)
execution = Execution(scratch=Path("scratch"), on_progress=on_progress)
archive = DataFolder.at(Path("archive"))
print(folder.list_folder(f"folder:{sys.argv[1]}", archive, execution, splits=["train", "val"], parts="all"))
"""


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(fill, listed, root, tmp_path, small_parts):
    fill(many(range(20)))
    listed()
    workspace = tmp_path / "killed"
    workspace.mkdir()

    def run(limit: float) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", KILLED, str(root), str(limit)]
        return subprocess.run(command, cwd=workspace, capture_output=True, text=True)

    for limit in (0.5, 0.6):  # of what is left then
        assert run(limit).returncode == -signal.SIGKILL
        assert not (workspace / "archive/inventory.json").exists()
        with pytest.raises(UserError, match="run the stage `download` to its end"):
            read_inventory(workspace / "archive")
    last_line = run(2).stdout
    assert 0 < int(last_line.split(" of them read now")[0].split()[-1]) < 12
    assert contents(workspace / "archive") == contents(tmp_path / "archive")


# the stage


@pytest.mark.parametrize("by_environment", [True, False])
def test_the_stage_takes_a_folder_from_here_and_speaks_of_no_terms(fill, root, tmp_path, monkeypatch, by_environment):
    fill({"train/a/1.mp4": noise(1), "val/a/1.mp4": noise(2)})
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    raw["data"]["name"] = "mine"
    raw["datasets"]["mine"] = {"source": "/no/such/mirror" if by_environment else "folder:videos"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    monkeypatch.setenv("ACTIONZOO_SOURCE", f"folder://{root}" if by_environment else "")
    command = [sys.executable, PROJECT / "stages/download.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "download: 2 videos in 2 lists" in done.stdout and TERMS[:20] not in done.stdout
    assert read_inventory(tmp_path / "data/mine/archive").splits["train"] == FetchedSplit((0,), 1)


@pytest.mark.parametrize("source", ["folder:", "folder://videos", "folders:///videos", "Folder:videos"])
def test_a_source_spelt_otherwise_is_refused(tmp_path, monkeypatch, source):
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    monkeypatch.setenv("ACTIONZOO_SOURCE", source)
    with pytest.raises(UserError, match=r"ACTIONZOO_SOURCE is .*; write folder:///path/to/videos, or folder:videos"):
        load_params(tmp_path / "params.yaml")
    monkeypatch.delenv("ACTIONZOO_SOURCE")
    raw["datasets"]["mine"] = {"source": source}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(UserError, match=r"datasets\.mine\.source is .*; write folder:///path/to/videos"):
        load_params(tmp_path / "params.yaml")
