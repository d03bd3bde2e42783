"""The report on a data set: what it counts can be counted by hand, and what it shows comes from the clips."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.labels import kinetics400
from actionzoo.kinetics.manifest import Clip, export_lists, read_manifest, write_manifest
from actionzoo.kinetics.overview import KNOWN_COPIES, Overview, as_json, summary, survey
from actionzoo.kinetics.shards import ShardWriter
from actionzoo.kinetics.transcode import Encode
from actionzoo.report.data_page import write_data_report
from tests.kinetics import small_clips
from tests.kinetics.data_stages import make_archive, make_videos
from tests.kinetics.files import contents
from tests.kinetics.small_films import film
from tests.kinetics.small_mirror import as_members, write_split

PROJECT = Path(__file__).resolve().parents[2]


def clip(video_id: str, split: str = "train", **changes) -> Clip:
    of_split = {
        "split": split,
        "shard": f"{split}/part_000.tar",
        "fps": 25.0,
        "sha256": hashlib.sha256(f"{split}/{video_id}".encode()).hexdigest(),
    }
    if changes.get("state") in ("missing", "corrupt", "unlisted"):
        gone = dict.fromkeys(("offset", "size", "num_frames", "width", "height", "fps"))
        changes = {"shard": "", "sha256": "", **gone, **changes}
    return small_clips.clip(video_id, **of_split | changes)


def surveyed(folder: Path, clips: list[Clip]) -> Overview:
    write_manifest(folder / "videos_256" / "manifest.csv", clips)
    return survey(DataFolder.at(folder), "videos_256", clips, export_lists(clips, folder / "lists"))


def of_kinetics400(**counts: int) -> list[Clip]:
    """So many clips in each split, over the 400 classes."""
    names = kinetics400()
    return [
        clip(f"{split}{n:06d}_000000_000010", split, label=n % 400, class_name=names[n % 400])
        for split, count in counts.items()
        for n in range(count)
    ]


def test_states_are_counted_split_by_split_and_class_by_class(tmp_path):
    clips = [
        clip("a_000000_000010"),
        clip("b_000000_000010", state="replaced", reason="in no part", label=1, class_name="zumba"),
        clip("c_000000_000010", state="missing", reason="in no part"),
        clip("d_000000_000010", state="corrupt", reason="zero bytes"),
        clip("e_000000_000010", state="unlisted", label=-1, class_name="", reason="in part_000"),
        clip("f_000000_000010", "test", label=-1, class_name=""),
    ]
    overview = surveyed(tmp_path, clips)
    train = overview.splits["train"]
    # in the archives' parts: a, d and e; b came from the replacements
    assert (train.listed, train.archived, train.usable) == (4, 3, 2)
    assert (train.num_frames, train.hours, train.size_bytes) == (500, round(20 / 3600, 3), 2000)
    assert [counts.get("train", {}).get("ok") for counts in overview.class_states] == [1, 0, None]
    assert overview.class_states[0]["train"]["missing"] == overview.class_states[0]["train"]["corrupt"] == 1
    assert overview.class_states[-1]["test"]["ok"] == 1
    assert overview.reasons[0] == ("replaced", "in no part", 1)


def test_clips_of_one_video_in_one_split_are_reported_and_whether_they_overlap(tmp_path):
    clips = [
        clip("aaaaaaaaaaa_000000_000010"),
        clip("aaaaaaaaaaa_000005_000015"),
        clip("b_b-b_b-b_b_000000_000010"),
        clip("b_b-b_b-b_b_000010_000020"),
        clip("ccccccccccc_000000_000010"),
    ]
    groups = surveyed(tmp_path, clips).doubles["train"]
    assert [(group.shared, group.overlap) for group in groups] == [("aaaaaaaaaaa", True), ("b_b-b_b-b_b", False)]


def test_videos_in_two_splits_are_leaks_even_if_a_clip_is_missing(tmp_path):
    clips = [
        clip("aaaaaaaaaaa_000000_000010"),
        clip("aaaaaaaaaaa_000000_000010", "val", state="missing"),
        clip("bbbbbbbbbbb_000000_000010"),
        clip("bbbbbbbbbbb_000040_000050", "test"),
        clip("ccccccccccc_000000_000010", "val", state="unlisted", label=-1, class_name=""),
        clip("ccccccccccc_000000_000010", "test"),
    ]
    overview = surveyed(tmp_path, clips)
    found = {pair: [(group.shared, group.overlap) for group in groups] for pair, groups in overview.leaks.items()}
    assert found == {"train, val": [("aaaaaaaaaaa", True)], "train, test": [("bbbbbbbbbbb", False)], "val, test": []}
    assert "1 video with clips in train and in val, 1 of them with the same seconds" in overview.warnings


def test_equal_bytes_under_two_names_are_found_and_unusable_clips_do_not_count(tmp_path):
    empty = hashlib.sha256(b"").hexdigest()
    clips = [
        clip("a_000000_000010", sha256="1" * 64),
        clip("b_000000_000010", sha256="1" * 64),
        clip("c_000000_000010", "val", sha256="1" * 64),
        clip("d_000000_000010", state="corrupt", sha256=empty),
        clip("e_000000_000010", state="corrupt", sha256=empty),
    ]
    overview = surveyed(tmp_path, clips)
    assert [[clip.video_id[0] for clip in group.clips] for group in overview.same_bytes["train"]] == [["a", "b"]]
    assert [[clip.video_id[0] for clip in group.clips] for group in overview.leaked_bytes["train, val"]] == [
        ["a", "b", "c"]
    ]
    assert "1 clip both in train and in val, byte by byte" in overview.warnings


def test_ones_own_names_without_times_are_whole_videos(tmp_path):
    clips = [clip("holiday"), clip("holiday", "val"), clip("holiday_1"), clip("holiday_2", "val")]
    assert [group.shared for group in surveyed(tmp_path, clips).leaks["train, val"]] == ["holiday"]


def test_the_copy_whose_counts_these_are_is_named(tmp_path):
    overview = surveyed(tmp_path, of_kinetics400(val=19_796))
    assert [match.copy.name for match in overview.matches] == ["MMAction2"]
    off = {comparison.copy.name: comparison.off for comparison in overview.comparisons}
    assert off["annotation"] == {"val": 19_796 - 19_906}
    assert off["public mirror"] == {"val": 19_796 - 19_881}
    assert off["Non-local, PySlowFast"] == {"val": 35}  # of 19,760 or 19,761
    assert "MMAction2 (usable): val the same" in summary(overview)


def test_counts_of_no_copy_have_a_nearest_one(tmp_path):
    overview = surveyed(tmp_path, of_kinetics400(val=19_400))
    assert overview.matches == []
    assert (overview.nearest.copy.name, overview.nearest.off) == ("Academic Torrents", {"val": -4})


def test_other_classes_are_not_compared(tmp_path):
    overview = surveyed(tmp_path, [clip("a")])
    assert overview.comparisons is None and overview.matches == [] and overview.nearest is None
    assert "not compared" in summary(overview)


def test_every_known_count_has_a_source_and_a_number_of_ours_beside_it():
    assert {19_796, 19_881, 19_906} <= {low for copy in KNOWN_COPIES for low, _ in copy.splits.values()}
    for copy in KNOWN_COPIES:
        assert copy.source and copy.counts in ("listed", "archived", "usable")
        assert all(0 < low <= high for low, high in copy.splits.values())


def test_the_hashes_are_those_of_the_exported_files(tmp_path):
    overview = surveyed(tmp_path, of_kinetics400(train=800))
    assert overview.hashes["train.txt"] == hashlib.sha256((tmp_path / "lists/train.txt").read_bytes()).hexdigest()
    assert len((tmp_path / "lists/train.txt").read_text().splitlines()) == 800
    # the label map of all released weights
    said = hashlib.md5((tmp_path / "lists/label_map.txt").read_bytes()).hexdigest()
    assert said == "41a47d45938e2f6e4f3eac44b26376e5"


def test_an_annotation_that_changed_since_is_reported(tmp_path):
    annotation = tmp_path / "archive/annotations/train.csv"
    annotation.parent.mkdir(parents=True)
    annotation.write_text("label,youtube_id,time_start,time_end\nabseiling,a,0,10\nabseiling,new,0,10\n")
    overview = surveyed(tmp_path, [clip("a_000000_000010"), clip("old_000000_000010")])
    train = overview.splits["train"]
    assert (train.annotated, train.listed) == (2, 2)
    assert (train.not_in_manifest, train.not_in_annotation) == (["new_000000_000010"], ["old_000000_000010"])
    assert overview.warnings[0].startswith("train: the annotation has changed since the manifest was made, 1 clips")


def test_enumerations_are_cut_and_their_length_is_kept(tmp_path):
    clips = [clip(f"{n:05d}_000000_000010", split) for n in range(150) for split in ("train", "val")]
    said = json.loads(as_json(surveyed(tmp_path, clips)))
    assert said["leaks"]["train, val"]["count"] == 150
    assert len(said["leaks"]["train, val"]["first"]) == 100


# --- the whole report, on real clips

NASTY = "<script>alert('x')</script> & \"co\""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Seven clips of two classes, one of them in train and in val, and one that is nowhere; prepared for real."""
    folder = tmp_path_factory.mktemp("overview") / "data" / "zoo"
    root = folder.parent.parent / "mirror/400"
    twin = film(num_frames=21)
    parts = {
        "train": {f"{name}{n}": film(num_frames=10 + n) for n, name in enumerate(["-a", "-b", "c", "d"])} | {"e": twin},
        "val": {"e": twin, "f": film(num_frames=30)},
    }
    for split, videos in parts.items():
        lines = [f'"{NASTY.replace(chr(34), chr(34) * 2)}",{name},0,10' for name in videos] + ["zumba,gone,0,10"]
        lines[0] = lines[0].replace(lines[0].rpartition('",')[0] + '"', "zumba")
        annotation = "\n".join(["label,youtube_id,time_start,time_end", *lines]) + "\n"
        write_split(root, split, [as_members(videos, "_000000_000010.mp4")], annotation)
    archive = make_archive(root, folder, ["train", "val"])
    make_videos(archive, folder / "videos_256", 256, encode=Encode(preset="ultrafast"))
    return folder


def test_the_report_is_a_page_its_facts_its_lists_and_pictures(data, tmp_path):
    write_data_report(DataFolder.at(data), "videos_256", tmp_path)
    assert sorted(contents(tmp_path)) == [
        *("data.html", "data.json", "data/class_000.jpg", "data/class_001.jpg", "data/classes.jpg"),
        *("data/label_map.txt", "data/train.txt", "data/val.txt"),
    ]
    assert (tmp_path / "data/label_map.txt").read_text() == f"{NASTY}\nzumba\n"
    facts = json.loads((tmp_path / "data.json").read_text())
    assert facts["splits"]["train"]["states"]["ok"] == 5 and facts["splits"]["train"]["states"]["missing"] == 1
    assert [facts["leaks"]["train, val"]["count"], facts["leaked_bytes"]["train, val"]["count"]] == [2, 1]


def test_the_same_data_give_the_same_bytes_whatever_was_there(data, tmp_path):
    write_data_report(DataFolder.at(data), "videos_256", tmp_path / "a", jobs=1)
    (tmp_path / "b/data").mkdir(parents=True)
    (tmp_path / "b/data/class_999.jpg").write_bytes(b"of an older report")
    write_data_report(DataFolder.at(data), "videos_256", tmp_path / "b", jobs=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_page_escapes_names_and_needs_nothing_from_elsewhere(data, tmp_path):
    write_data_report(DataFolder.at(data), "videos_256", tmp_path)
    page = (tmp_path / "data.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page and "https://" not in page and str(tmp_path) not in page
    links = set(re.findall(r'(?:href="|url\()([^")]+)', page))
    assert {"data.json", "data/classes.jpg", "data/class_001.jpg", "data/train.txt"} <= links
    assert [link for link in links if not (tmp_path / link).is_file()] == []


def test_a_picture_is_the_middle_frame_of_its_clip(data, tmp_path):
    """The films are red above and blue below, green to the left; with every frame they grow lighter."""
    write_data_report(DataFolder.at(data), "videos_256", tmp_path, pictures=1)
    image = cv2.cvtColor(cv2.imread(str(tmp_path / "data/class_001.jpg")), cv2.COLOR_BGR2RGB)
    assert image.shape == (146, 160, 3)
    zumba = next(clip for clip in read_manifest(data / "videos_256/manifest.csv") if clip.class_name == "zumba")
    level = zumba.num_frames // 2
    right = image[[15, 105], 130].astype(int)
    assert np.abs(right - [[110 + level, level, level], [level, level, 110 + level]]).max() < 25


def test_no_more_clips_are_shown_than_asked_for_and_none_if_none(data, tmp_path):
    write_data_report(DataFolder.at(data), "videos_256", tmp_path, pictures=2)
    assert cv2.imread(str(tmp_path / "data/class_000.jpg")).shape == (146, 320, 3)
    write_data_report(DataFolder.at(data), "videos_256", tmp_path, pictures=0)
    assert not list(tmp_path.glob("data/*.jpg")) and 'href="data/class' not in (tmp_path / "data.html").read_text()


def test_a_clip_that_does_not_decode_is_named_on_the_page(tmp_path):
    folder = tmp_path / "zoo/videos_256"
    with ShardWriter(folder / "train/part_000.tar") as shard:
        offset, size = shard.add("a.mp4", b"no video" * 99)
    write_manifest(folder / "manifest.csv", [clip("a_000000_000010", offset=offset, size=size)])
    write_data_report(DataFolder.at(tmp_path / "zoo"), "videos_256", tmp_path / "out")
    assert re.search('class="none">a_000000_000010: ', (tmp_path / "out/data.html").read_text())


def test_a_form_that_is_not_there_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="the stages `resize` and `frames` make it"):
        write_data_report(DataFolder.at(tmp_path), "videos_256", tmp_path / "out")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "ACTIONZOO_SOURCE"}
    line = [sys.executable, "-m", "actionzoo.cli", "data", "report", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command_takes_the_first_form_there_is_and_says_the_gist(data):
    root = data.parent.parent
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["datasets"]["zoo"] = params["datasets"]["kinetics400"] | {"source": "/nowhere"}
    params["data"]["name"] = "zoo"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(PROJECT / "published.yaml", root)
    done = command(root)
    assert done.returncode == 0, done.stderr
    assert "zoo/videos_256: 2 classes" in done.stdout
    assert "warning: 1 clip both in train and in val, byte by byte" in done.stdout
    assert done.stdout.splitlines()[-1] == "report/zoo/data.html"
    assert contents(root / "report/zoo").keys() >= {"data.html", "data.json", "data/classes.jpg"}
    done = command(root, "frames_256")
    assert done.returncode == 1 and "frames_256/manifest.csv is not there" in done.stderr


def test_what_the_command_writes_lies_in_no_output_of_dvc():
    """Else `dvc status` would call the output changed, and the next `dvc repro` would delete the page."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    outs = [out for stage in stages.values() for out in stage.get("do", stage).get("outs", [])]
    paths = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    page = Path("report/${data.name}/data.html")
    assert [path for path in paths if page.is_relative_to(path)] == []


def test_the_command_explains_itself():
    done = command(PROJECT, "--help")
    assert "example: actionzoo data report videos_256" in done.stdout
