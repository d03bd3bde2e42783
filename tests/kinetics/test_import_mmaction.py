"""Import of MMAction2's folders as they are: real files, inspected and loaded by the real readers."""

import copy
import dataclasses
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from actionzoo.clips.inputs import to_input
from actionzoo.clips.inspect import inspect_clips
from actionzoo.clips.loader import Loading, view_loader
from actionzoo.clips.readers import open_clip, read
from actionzoo.errors import MachineFault, UserError
from actionzoo.kinetics.import_mmaction import MMActionSplit, import_mmaction
from actionzoo.kinetics.labels import kinetics400
from actionzoo.kinetics.manifest import export_lists, label_map, read_manifest, write_manifest
from actionzoo.kinetics.shard_list import read_shards
from actionzoo.kinetics.transcode import to_jpegs
from actionzoo.recipe import TestSpec
from tests.clips.counted_films import film, number_of

look = partial(inspect_clips, workers=1, timeout_seconds=60)
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
SPEC = TestSpec(
    form="videos", short_side=256, clip_len=4, frame_interval=2, resize=64, mean=(0, 0, 0), std=(255, 255, 255),
    num_clips=1, num_crops=1, crop_size=64, average_clips="prob",
)  # fmt: skip
VIDEOS = {"arm wrestling/a b.mp4": 40, "arm wrestling/c.mp4": 30, "zumba/d.mp4": 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """videos/ and frames/ as MMAction2's tools leave them, with their lists."""
    root = tmp_path_factory.mktemp("mmaction2")
    lists: dict[str, list[str]] = {"videos.txt": [], "frames.txt": []}
    for path, num_frames in VIDEOS.items():
        data = film(root, num_frames, *H264)
        label = int(path.startswith("zumba"))
        (root / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "videos" / path).write_bytes(data)
        lists["videos.txt"].append(f"{path} {label}")
        frames = root / "frames" / path.removesuffix(".mp4")
        frames.mkdir(parents=True)
        for number, jpeg in enumerate(to_jpegs(data, qscale=2, timeout_seconds=60, scratch=root / "scratch").frames, 1):
            (frames / f"img_{number:05d}.jpg").write_bytes(jpeg)
        lists["frames.txt"].append(f"{path.removesuffix('.mp4')} {num_frames} {label}")
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("arm wrestling\nzumba\n")
    return root


@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_clips_of_a_list_are_found_counted_and_loaded(folder, tmp_path, kind):
    form = tmp_path / f"{kind}_64"
    line = import_mmaction(
        form, MMActionSplit("val", folder / f"{kind}.txt", folder / kind, folder / "classes.txt"), inspect=look
    )
    assert line == f"import-mmaction: 3 clips of val ({form / 'manifest.csv'})"
    assert sorted(path.name for path in form.iterdir()) == ["classes.txt", "manifest.csv", "shards.csv"]
    assert read_shards(form / "shards.csv") == []
    clips = read_manifest(form / "manifest.csv")
    assert {clip.video_id: (clip.num_frames, clip.class_name) for clip in clips} == {
        path.removesuffix(".mp4"): (num_frames, path.partition("/")[0]) for path, num_frames in VIDEOS.items()
    }
    assert label_map(clips) == ["arm wrestling", "zumba"]
    for clip in clips:
        wanted = np.array([clip.num_frames - 1, 3, 3])
        assert [number_of(frame) for frame in read(open_clip(form, clip), wanted)] == wanted.tolist()

    spec = dataclasses.replace(SPEC, form=kind, num_clips=3, num_crops=3)
    loader = view_loader(form, clips, spec, loading=Loading(batch_size=2, workers=1, timeout_seconds=60))
    made = list(loader)
    loader.close()
    assert [video_id for batch in made for video_id in batch.video_ids] == [clip.video_id for clip in clips]
    assert not any(batch.undecodable for batch in made)
    views = to_input(made[0].views, mean=spec.mean, std=spec.std, device=torch.device("cpu"))
    assert views.shape == (18, 3, 4, 64, 64) and 0 < views.mean() < 1


def test_splits_are_imported_one_by_one(folder, tmp_path):
    form = tmp_path / "videos_64"
    for split in ("train", "val", "val"):
        import_mmaction(form, MMActionSplit(split, folder / "videos.txt", folder / "videos"), inspect=look)
    clips = read_manifest(form / "manifest.csv")
    assert [clip.split for clip in clips] == ["train"] * 3 + ["val"] * 3
    assert {clip.class_name for clip in clips} == {"0", "1"}
    written = {path.name: path.read_text() for path in export_lists(clips, tmp_path / "lists")}
    assert written["val.txt"].splitlines()[-1] == "zumba/d 50 1"


def test_a_form_that_the_pipeline_made_is_not_overwritten(folder, tmp_path):
    form = tmp_path / "videos_64"
    import_mmaction(form, MMActionSplit("train", folder / "videos.txt", folder / "videos"), inspect=look)
    clips = read_manifest(form / "manifest.csv")
    write_manifest(form / "manifest.csv", [dataclasses.replace(clip, shard="train/part_0.tar") for clip in clips])
    with pytest.raises(UserError, match="shards that `dvc repro` made; give the folder's data set an entry of its own"):
        import_mmaction(form, MMActionSplit("val", folder / "videos.txt", folder / "videos"), inspect=look)


def test_clips_that_cannot_be_used_are_in_the_manifest_with_the_reason(folder, tmp_path, capfd):
    (folder / "videos/broken.mp4").write_bytes(b"no video")
    lines = [*(folder / "videos.txt").read_text().splitlines(), "broken.mp4 0", "nowhere.mp4 1"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    form = tmp_path / "videos_64"
    line = import_mmaction(
        form, MMActionSplit("val", tmp_path / "list.txt", folder / "videos"), inspect=look, max_bad_share=0.4
    )
    assert line.startswith("import-mmaction: 3 clips of val, 2 that cannot be used")
    assert capfd.readouterr().err == ""
    states = {clip.video_id: (clip.state, clip.reason) for clip in read_manifest(form / "manifest.csv")}
    assert states["broken"][0] == "corrupt" and states["broken"][1]
    assert states["nowhere"] == ("missing", f"{folder / 'videos/nowhere.mp4'} is not there")
    with pytest.raises(
        UserError, match=r"2 of the 5 clips of .*list\.txt cannot be used, .* 30\.0%; the first ones: bro"
    ):
        import_mmaction(
            form, MMActionSplit("val", tmp_path / "list.txt", folder / "videos"), inspect=look, max_bad_share=0.3
        )
    with pytest.raises(UserError, match="none of the 5 clips"):
        import_mmaction(form, MMActionSplit("val", tmp_path / "list.txt", tmp_path), inspect=look)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4 zero\n", r"line 2: 'b\.mp4 zero' is not `path, label`"),
        ("a.mp4 0\na.mp4 1\n", r"line 2: a\.mp4 is listed twice"),
        ("\n", "lists nothing"),
        ("a.mp4 7\n", r"a\.mp4 has label 7, but .*classes\.txt 2 names"),
    ],
)
def test_lists_that_are_none_are_refused_with_their_line(folder, tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        import_mmaction(
            tmp_path / "videos_64",
            MMActionSplit("val", tmp_path / "list.txt", folder, folder / "classes.txt"),
            inspect=look,
        )


def test_lists_of_frames_have_their_number(folder, tmp_path):
    with pytest.raises(UserError, match=r"line 1: 'arm wrestling/a b\.mp4 0' is not `path, number of frames, label`"):
        import_mmaction(
            tmp_path / "frames_64", MMActionSplit("val", folder / "videos.txt", folder / "videos"), inspect=look
        )


def test_the_forms_name_says_what_it_holds(folder, tmp_path):
    with pytest.raises(UserError, match="must be called videos_<short side> or frames_<short side>"):
        import_mmaction(
            tmp_path / "clips", MMActionSplit("val", folder / "videos.txt", folder / "videos"), inspect=look
        )


ENCODINGS = {
    "a mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "a mark, Windows": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, Windows": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
}


@pytest.mark.parametrize("kind", ["videos", "frames"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_and_class_lists_are_read_as_editors_save_them(folder, tmp_path, kind, encoding):
    for name in (f"{kind}.txt", "classes.txt"):
        (tmp_path / name).write_bytes(ENCODINGS[encoding]((folder / name).read_text()))
    made = []
    for source in (folder, tmp_path):
        form = tmp_path / source.name / f"{kind}_64"
        import_mmaction(
            form, MMActionSplit("val", source / f"{kind}.txt", folder / kind, source / "classes.txt"), inspect=look
        )
        made.append((form / "manifest.csv").read_bytes())
    assert made[0] == made[1]


def write_list(path: Path, kind: str, labels: list[int]) -> Path:
    names = [name if kind == "videos" else f"{name.removesuffix('.mp4')} {num}" for name, num in VIDEOS.items()]
    path.write_text("".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)))
    return path


@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_a_list_of_some_classes_keeps_the_labels_of_all(folder, tmp_path, kind):
    form, names = tmp_path / f"{kind}_64", [f"class {number}" for number in range(400)]
    (tmp_path / "map.txt").write_text("\n".join(names))
    listed = write_list(tmp_path / "list.txt", kind, [3, 7, 399])
    import_mmaction(form, MMActionSplit("val", listed, folder / kind, tmp_path / "map.txt"), inspect=look)
    clips = read_manifest(form / "manifest.csv")
    assert label_map(clips) == names and [clip.class_name for clip in clips] == ["class 3", "class 7", "class 399"]
    files = {path.name: path.read_text() for path in export_lists(clips, tmp_path / "lists")}
    assert files["label_map.txt"].splitlines() == names and files["val.txt"].splitlines()[-1].endswith(" 399")
    # another split needs the file no more; nor does it lose the list when the form is written again
    import_mmaction(
        form, MMActionSplit("train", write_list(tmp_path / "train.txt", kind, [0, 0, 5]), folder / kind), inspect=look
    )
    write_manifest(form / "manifest.csv", read_manifest(form / "manifest.csv"))
    assert label_map(read_manifest(form / "manifest.csv")) == names
    with pytest.raises(
        UserError, match=r"line 3: .* has label 400, but .*classes\.txt 400 names, whose labels are 0 to 399"
    ):
        import_mmaction(
            form,
            MMActionSplit("train", write_list(tmp_path / "train.txt", kind, [0, 0, 400]), folder / kind),
            inspect=look,
        )


def test_another_class_list_than_that_of_the_other_splits_is_refused(folder, tmp_path):
    form, classes, swapped = tmp_path / "videos_64", folder / "classes.txt", tmp_path / "swapped.txt"
    swapped.write_text("zumba\narm wrestling\n")
    import_mmaction(form, MMActionSplit("val", folder / "videos.txt", folder / "videos", classes), inspect=look)
    with pytest.raises(UserError, match=r"label 0 is 'zumba' and was 'arm wrestling'.*; give the same,"):
        import_mmaction(form, MMActionSplit("train", folder / "videos.txt", folder / "videos", swapped), inspect=look)
    import_mmaction(
        form, MMActionSplit("val", folder / "videos.txt", folder / "videos", swapped), inspect=look
    )  # there is no other split
    assert label_map(read_manifest(form / "manifest.csv")) == ["zumba", "arm wrestling"]


def test_a_split_without_names_gets_those_that_come_with_the_next(folder, tmp_path):
    form = tmp_path / "videos_64"
    import_mmaction(form, MMActionSplit("train", folder / "videos.txt", folder / "videos"), inspect=look)
    import_mmaction(
        form, MMActionSplit("val", folder / "videos.txt", folder / "videos", folder / "classes.txt"), inspect=look
    )
    assert {clip.class_name for clip in read_manifest(form / "manifest.csv")} == {"arm wrestling", "zumba"}


def never(paths):
    raise AssertionError("no file may be inspected before the list is right")


@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_a_gap_in_the_labels_is_reported_at_once_with_the_remedy(folder, tmp_path, kind):
    listed = write_list(tmp_path / "list.txt", kind, [0, 2, 999_999_999])
    with pytest.raises(UserError, match=r"no clip has label 1, yet there is 999999999 .*line 3.*: --classes FILE"):
        import_mmaction(tmp_path / f"{kind}_64", MMActionSplit("val", listed, folder / kind), inspect=never)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/a.mp4 0\nx/a.avi 0\n", r"line 2: x/a\.avi and x/a\.mp4 in line 1 are both called x/a here"),
        ("a.mp4 0\n./a.mp4 0\n", r"line 2: a\.mp4 is listed twice, first in line 1"),
        ("x//a.mp4 0\nx/./a.webm 0\n", "line 2: .* are both called x/a here"),
        ("/etc/passwd 0\n", "line 1: '/etc/passwd' does not lie below the folder"),
        ("x/../../a.mp4 0\n", r"line 1: 'x/\.\./\.\./a\.mp4' does not lie below the folder"),
        (". 0\n", r"line 1: '\.' does not lie below the folder"),
        (f"{'é' * 200}.mp4 0\n", "line 1: .* is longer than a file's name may be"),
        (f"{'x/' * 3000}a.mp4 0\n", "line 1: .* is longer than a file's name may be"),
        (f"a.mp4 {'7' * 5000}\n", "line 1: .* ends in a number of 5000 digits"),
        ("a.mp4 -1\n", "line 1: .* is not `path, label`"),
        ("a.mp4 ٣\n", "line 1: .* is not `path, label`"),
        ("a\x1b[31m.mp4 0\n", "line 1: .* has a control character"),
        ("a\0.mp4 0\n", "is not text: it holds zero bytes"),
    ],
)
def test_lists_that_lead_astray_are_refused_before_a_file_is_opened(folder, tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        import_mmaction(
            tmp_path / "videos_64",
            MMActionSplit("val", tmp_path / "list.txt", folder, folder / "classes.txt"),
            inspect=never,
        )
    assert len(str(caught.value)) < 1000 and not (tmp_path / "videos_64").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/a 10 0\nx/a/ 10 0\n", "line 2: x/a is listed twice"),
        (f"x/a {'9' * 5000} 0\n", "ends in a number of 5000 digits"),
        ("x/a 999999999 0\n", "has 999999999 frames; a clip has at most 1000000"),
        ("../a 10 0\n", "does not lie below the folder"),
    ],
)
def test_lists_of_frames_that_lead_astray_are_refused(folder, tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        import_mmaction(tmp_path / "frames_64", MMActionSplit("val", tmp_path / "list.txt", folder), inspect=never)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb\n", "line 2 is empty, and names follow"),
        ("a\nb\na\n", "line 3: 'a' is in line 1, too"),
        ("\n", "names no class"),
        (f"a\n{'b' * 201}\n", "line 2: .* is no name of a class"),
        ("a\nb\x1b[31m\n", "line 2: .* is no name of a class"),
    ],
)
def test_class_lists_that_are_none_are_refused(folder, tmp_path, text, message):
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        import_mmaction(
            tmp_path / "videos_64",
            MMActionSplit("val", folder / "videos.txt", folder, tmp_path / "map.txt"),
            inspect=never,
        )


@pytest.mark.parametrize("which", ["list", "classes", "folder"])
@pytest.mark.parametrize("path", ["nowhere", "x" * 5000])
def test_files_that_cannot_be_opened_are_named(folder, tmp_path, which, path):
    paths = {"list": folder / "videos.txt", "classes": folder / "classes.txt", "folder": folder / "videos"}
    paths[which] = tmp_path / path
    with pytest.raises(UserError, match=path[:7]):
        import_mmaction(
            tmp_path / "videos_64",
            MMActionSplit("val", paths["list"], paths["folder"], paths["classes"]),
            inspect=never,
        )


def test_a_playlist_among_the_videos_is_corrupt_and_the_same_list_gives_the_same_bytes(folder, tmp_path):
    shutil.copytree(folder / "videos", tmp_path / "videos")
    (tmp_path / "videos/bad.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n")
    (tmp_path / "videos/zeros.mp4").write_bytes(bytes(9000))
    (tmp_path / "list.txt").write_text((folder / "videos.txt").read_text() + "bad.mp4 0\nzeros.mp4 0\n")
    made = []
    for name in ("one", "two"):
        form = tmp_path / name / "videos_64"
        import_mmaction(
            form, MMActionSplit("val", tmp_path / "list.txt", tmp_path / "videos"), inspect=look, max_bad_share=0.5
        )
        made.append((form / "manifest.csv").read_bytes())
    assert made[0] == made[1]
    reasons = {clip.video_id: clip.reason for clip in read_manifest(form / "manifest.csv") if not clip.is_usable}
    assert reasons["bad"].startswith("bad.mp4: it is not a video file: none of mp4, mov,")
    assert reasons["zeros"].startswith("zeros.mp4: ") and "encode it anew" in reasons["zeros"]


def test_a_machine_fault_writes_nothing(folder, tmp_path):
    def fail(paths):
        yield "no video"
        raise MachineFault("the machine failed: Input/output error")

    with pytest.raises(MachineFault):
        import_mmaction(
            tmp_path / "videos_64",
            MMActionSplit("val", folder / "videos.txt", folder / "videos"),
            inspect=fail,
            max_bad_share=1,
        )
    assert not (tmp_path / "videos_64").exists()


@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_a_disk_that_cannot_be_read_is_no_error_of_the_clips(folder, tmp_path, kind):
    shutil.copytree(folder / kind, tmp_path / kind)
    broken = tmp_path / kind / ("zumba/d.mp4" if kind == "videos" else "zumba/d/img_00001.jpg")
    broken.unlink()
    broken.symlink_to("/proc/self/mem")  # reading it from the start is an EIO
    form = tmp_path / f"{kind}_64"
    with pytest.raises(MachineFault, match="Input/output error"):
        import_mmaction(
            form, MMActionSplit("val", folder / f"{kind}.txt", tmp_path / kind), inspect=look, max_bad_share=1
        )
    assert not form.exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_a_disk_that_cannot_be_read_ends_a_pass_of_the_loader_and_quarantines_no_clip(folder, tmp_path, kind, workers):
    shutil.copytree(folder / kind, tmp_path / kind)
    form = tmp_path / f"{kind}_64"
    import_mmaction(form, MMActionSplit("val", folder / f"{kind}.txt", tmp_path / kind), inspect=look)
    contents = {path: path.read_bytes() for path in (tmp_path / kind / "zumba").rglob("*.*")}
    for path in contents:
        path.unlink()
        path.symlink_to("/proc/self/mem")
    quarantine = tmp_path / "quarantine.json"
    loading = Loading(batch_size=1, workers=workers, timeout_seconds=60, quarantine=quarantine)
    spec = dataclasses.replace(SPEC, form=kind, num_clips=20)
    loader = view_loader(form, read_manifest(form / "manifest.csv"), spec, loading=loading)
    with pytest.raises(MachineFault, match=r"^zumba/d: .*Input/output error"):
        list(loader)
    for path, content in contents.items():
        path.unlink()
        path.write_bytes(content)
    assert [video_id for batch in loader for video_id in batch.video_ids][-1] == "zumba/d" and not quarantine.exists()
    loader.close()


@pytest.mark.slow
def test_a_list_of_three_of_400_classes_is_listed_and_trained_as_400(tmp_path):
    """As the command line does it, in a project with the shipped recipes."""
    settings = yaml.safe_load(Path("params.yaml").read_text())
    model = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
    settings["datasets"]["some"] = copy.deepcopy(settings["datasets"]["mirror"])
    settings["datasets"]["some"]["overrides"] = {model: {"schedule": {"epochs": 1}}}
    settings["data"]["name"] = "some"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    shutil.copy("published.yaml", tmp_path)
    (tmp_path / "map.txt").write_text("\r\n".join(kinetics400()))
    (tmp_path / "videos").mkdir()
    for label in (3, 7, 399):
        (tmp_path / f"videos/{label}.mp4").write_bytes(film(tmp_path, 40, *H264))
    (tmp_path / "list.txt").write_text("3.mp4 3\n7.mp4 7\n399.mp4 399\n")

    def actionzoo(*words: str) -> str:
        command = [sys.executable, "-m", "actionzoo.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    actionzoo("data", "import-mmaction", "videos_256", "list.txt", "videos", "--split", "train", "--classes", "map.txt")
    actionzoo("data", "import-mmaction", "videos_256", "list.txt", "videos", "--split", "val")
    actionzoo("lists", "videos_256", "lists")
    assert (tmp_path / "lists/label_map.txt").read_text().splitlines() == kinetics400()
    actionzoo("data", "report", "videos_256", "--pictures", "0")
    actionzoo("train", model, "--work-dir", "work")
    weights = torch.load(tmp_path / "work/best.pth", weights_only=True)["state_dict"]
    assert weights["cls_head.fc_cls.bias"].shape == (400,)
    assert "top-1" in actionzoo("test", model, "work/best.pth")
