"""What a network says of a video, whichever way the video comes."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from actionzoo.clips.readers import VideoReader, read
from actionzoo.engine.distributed import World
from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.job import Job
from actionzoo.jobs.evaluated_clips import evaluated_clips
from actionzoo.jobs.measure import Request, Subject
from actionzoo.jobs.measure import measure as measure_network
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.folder import list_folder
from actionzoo.kinetics.transcode import from_frames, measure, rotate, shown_size
from actionzoo.predict.command import predict_all
from actionzoo.predict.predictor import Predictor, open_predictor
from actionzoo.predict.video_paths import PredictRequest
from actionzoo.run_files import RunFiles
from actionzoo.weights.checkpoints import open_trained
from actionzoo.zoo import build_model
from tests.kinetics.data_stages import make_frames, make_videos
from tests.kinetics.small_films import QUICK
from tests.small_run import write_run

PROJECT = Path(__file__).resolve().parents[2]
VIDEOS = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
FRAMES = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
CLASSES = ["abseiling", "answering questions", "massaging person's head", "naïve (dance) 跳舞"]


def moving(seed: int, num_frames: int = 50, height: int = 96, width: int = 128, fps: float = 25, **options) -> bytes:
    """A texture of its own that moves in a direction of its own, as an mp4 file."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    step = rng.integers(1, 5, 2)
    frames = np.stack([np.roll(texture, tuple(number * step), (0, 1)) for number in range(num_frames)])
    return from_frames(frames, fps=fps, encode=QUICK, **options)


def with_sound(source: Path, out: Path, *options: str) -> Path:
    from actionzoo.kinetics.transcode import find_ffmpeg

    command = [find_ffmpeg(), "-v", "error", "-y", "-i", str(source), "-f", "lavfi", "-i", "sine=440", "-shortest"]
    subprocess.run([*command, *options, str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def root(params, tmp_path_factory) -> Path:
    """A project with prepared clips, and a run of a row of each family that was never trained."""
    root = tmp_path_factory.mktemp("project")
    for number, name in enumerate(CLASSES):
        for split in ("train", "val"):
            path = root / "films" / split / name / f"{split}{number}.mp4"
            path.parent.mkdir(parents=True)
            size = {"height": 120, "width": 90} if number == 1 else {}
            path.write_bytes(moving(number, num_frames=(30, 50, 70, 90)[number], **size))
    data = root / "data" / "demo"
    execution = Execution(scratch=root / "scratch", jobs=2)
    list_folder(
        f"folder://{root}/films", DataFolder.at(data / "archive"), execution, splits=("train", "val"), parts="all"
    )
    for short_side in (256, 320):
        encode = params.prepare.encode
        make_videos(data / "archive", data / f"videos_{short_side}", short_side, encode=encode, max_bad_share=0)
    make_frames(data / "videos_320", data / "frames_320", qscale=params.prepare.jpeg.qscale)
    for row in (VIDEOS, FRAMES):
        make_run(params, row, root)
    return root


def make_run(params, row: str, root: Path) -> RunFiles:
    files, recipe = RunFiles(root, params.name, row), params.recipe(row)
    torch.manual_seed(7)
    network = build_model(recipe.model, len(CLASSES))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("conv3.bn.weight"):
                parameter.fill_(0.5)
    write_run(params, files, network, CLASSES)
    # a head for which these clips differ
    predictor, features = open_predictor(row, params=params, root=root), []
    predictor.trained.network.cls_head.dropout.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    list(predictor.each(sorted((root / "films").rglob("*.mp4"))))
    with torch.no_grad():
        head = network.cls_head.fc_cls
        head.weight.mul_(2 / (torch.cat(features) @ head.weight.T).std(dim=0)[:, None])
        head.bias.copy_(-head.weight @ torch.cat(features).mean(dim=0))
    write_run(params, files, network, CLASSES)
    return files


@pytest.fixture(scope="module")
def predictor(params, root) -> Predictor:
    return open_predictor(VIDEOS, params=params, root=root)


@pytest.fixture
def one(root) -> Path:
    return root / "films" / "val" / CLASSES[2] / "val2.mp4"


@pytest.mark.slow
@pytest.mark.parametrize("row", [VIDEOS, FRAMES])
def test_predictions_are_those_of_the_pipelines_own_test(params, root, tmp_path, row):
    trained = open_trained(row, params=params, root=root)
    subject = Subject(network=trained.network, classes=CLASSES, checkpoint_md5="0" * 32)
    job = Job.of(params, row, root)
    request = Request(clips=evaluated_clips(job, "val"), scratch=tmp_path / "scratch", average_clips="prob")
    outcome = measure_network(job, subject, request, World())
    tested = dict(zip(outcome.views.video_ids, outcome.scores.tolist(), strict=True))
    predictor = Predictor(trained, params)
    films = {path.stem: path for path in (root / "films" / "val").rglob("*.mp4")}
    assert len(tested) == len(CLASSES) and tested.keys() == films.keys()
    for video_id, scores in tested.items():
        said = dict(predictor(films[video_id]))
        # the same pixels; but other clips beside them in the batch, where sums may be of another order
        np.testing.assert_allclose([said[name] for name in CLASSES], scores, atol=1e-5)
    spread = np.ptp(list(tested.values()), axis=0)
    assert spread.max() > 0.05, "these clips could be mistaken for each other"


@pytest.mark.slow
def test_as_many_views_go_through_the_network_at_once_as_in_a_test(params, root, one, predictor):
    alone = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, max_views=1))
    careful, sizes = open_predictor(VIDEOS, params=alone, root=root), []
    careful.trained.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    said = dict(careful(one))
    assert sizes == [1, 1]
    assert said == pytest.approx(dict(predictor(one)), abs=1e-5)


def test_classes_come_with_falling_probabilities_that_add_up(predictor, one):
    said = predictor(one)
    values = [value for _, value in said]
    assert sorted(name for name, _ in said) == sorted(CLASSES) and values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert predictor(one, top=2) == said[:2]


def test_fewer_views_are_a_choice(params, root, predictor, one):
    quick = open_predictor(VIDEOS, params=params, root=root, num_clips=1, num_crops=3)
    assert (quick.trained.test_spec.num_clips, quick.trained.test_spec.num_crops) == (1, 3)
    assert quick(one) != predictor(one)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sound.mp4", ["-c:v", "copy"]),
        ("vp8.webm", ["-c:v", "libvpx", "-b:v", "4M", "-c:a", "libvorbis"]),
        ("b-frames.mkv", ["-c:v", "libx264", "-crf", "10", "-bf", "3"]),
        ("packed.avi", ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2", "-c:a", "pcm_s16le"]),
        ("stream.ts", ["-c:v", "libx264", "-crf", "10"]),
        ("old.mov", ["-c:v", "mjpeg", "-q:v", "2", "-c:a", "pcm_s16le"]),
        ("long-gop.mp4", ["-c:v", "libx264", "-crf", "10", "-g", "1000"]),
    ],
)
def test_whatever_container_and_codec_the_answer_is_nearly_the_same(predictor, one, tmp_path, name, options):
    """Nearly, for they were encoded anew: a few levels of 255."""
    copy = with_sound(one, tmp_path / name, *options)
    said, known = dict(predictor(copy)), dict(predictor(one))
    assert max(abs(said[name] - known[name]) for name in CLASSES) < 0.05


def test_a_turned_phone_film_is_seen_upright(predictor, tmp_path):
    upright, turned = tmp_path / "upright.mp4", tmp_path / "turned.mp4"
    frames = read(VideoReader(moving(5), 50), np.arange(50))
    upright.write_bytes(from_frames(frames, fps=25, encode=QUICK))
    turned.write_bytes(rotate(from_frames(np.rot90(frames, -1, (1, 2)), fps=25, encode=QUICK), 90))
    said, known = dict(predictor(turned)), dict(predictor(upright))
    assert max(abs(said[name] - known[name]) for name in CLASSES) < 0.05


def test_odd_sizes_and_a_varying_rate_are_no_trouble(predictor, one, tmp_path):
    odd = with_sound(
        one, tmp_path / "odd.webm", "-vf", "crop=101:77:0:0:exact=1", "-c:v", "libvpx-vp9", "-deadline", "realtime"
    )
    assert shown_size(odd, timeout_seconds=30) == (77, 101)
    varying = tmp_path / "varying.mp4"
    varying.write_bytes(moving(3, hold_every=3))
    assert len(predictor(odd)) == len(predictor(varying)) == len(CLASSES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "zero bytes"),
        (b"a film about nothing\n" * 50, "Invalid data"),
        (moving(1)[:3000], "moov atom not found"),
        (None, "is not there"),
    ],
)
def test_what_is_no_video_is_told_in_a_sentence(predictor, tmp_path, content, said):
    path = tmp_path / "film.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"film\.mp4 (gives no picture: )?.*{said}"):
        predictor(path)
    with pytest.raises(UserError, match=said):
        list(predictor.windows(path))


def test_a_pipe_is_refused_and_not_waited_for(predictor, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="no regular file"):
        predictor(tmp_path / "pipe.mp4")


def test_the_time_limit_ends_a_transcoding_and_says_what_to_do(params, root, tmp_path):
    short = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, clip_timeout_seconds=0.01))
    path = tmp_path / "long.mp4"
    path.write_bytes(moving(1, num_frames=400))
    with pytest.raises(UserError, match=r"timed out after 0.01 s; predict it in windows \(--window 10\), or raise"):
        open_predictor(VIDEOS, params=short, root=root)(path)


# windows


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """12.5 s: a texture for five seconds, then another one, with sound."""
    folder = tmp_path_factory.mktemp("long")
    size = {"height": 96, "width": 128}
    parts = [read(VideoReader(moving(seed, 125, **size), 125), np.arange(125)) for seed in (1, 2)]
    frames = np.concatenate([parts[0], parts[1], parts[1][:60]])
    (folder / "silent.mp4").write_bytes(from_frames(frames, fps=25, encode=QUICK))
    return with_sound(folder / "silent.mp4", folder / "long.mp4", "-c:v", "copy")


def test_windows_cover_the_video_and_the_last_one_ends_with_it(predictor, long):
    spans = [(each.start_seconds, each.end_seconds) for each in predictor.windows(long, window_seconds=5)]
    assert spans == [(0, 5), (5, 10), pytest.approx((7.4, 12.4), abs=0.02)]
    spans = [each.start_seconds for each in predictor.windows(long, window_seconds=5, stride_seconds=2.5)]
    assert spans == pytest.approx([0, 2.5, 5, 7.4], abs=0.02)


def test_a_video_shorter_than_a_window_is_one(predictor, one):
    (only,) = predictor.windows(one)
    assert (only.start_seconds, only.end_seconds) == (0, pytest.approx(2.8, abs=0.01))
    assert [name for name, _ in only.top] == [name for name, _ in predictor(one)]


def test_a_window_is_predicted_as_the_clip_that_is_cut_out_there(predictor, long, tmp_path):
    frames = read(VideoReader(long.read_bytes(), 310), np.arange(310))
    for number, window in enumerate(predictor.windows(long, window_seconds=5)):
        start = round(window.start_seconds * 25)
        cut = tmp_path / f"{number}.mp4"
        cut.write_bytes(from_frames(frames[start : start + 125], fps=25, encode=QUICK))
        known, said = dict(predictor(cut)), dict(window.top)
        assert max(abs(said[name] - known[name]) for name in CLASSES) < 0.05


def test_many_windows_keep_nothing_in_memory_or_on_disk(params, root, long, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    quick = open_predictor(VIDEOS, params=params, root=root, num_clips=1, num_crops=1)
    most = 0
    for _ in quick.windows(long, window_seconds=2, stride_seconds=1):
        most = max(most, len(list(tmp_path.rglob("*.mp4"))))
    assert most <= 2 * params.runtime.num_jobs + 2
    assert list(tmp_path.iterdir()) == []


def test_windows_that_make_no_sense_are_refused(predictor, long):
    with pytest.raises(UserError, match="give more than 0"):
        list(predictor.windows(long, window_seconds=-1))


# drawing


def test_a_drawn_copy_keeps_size_times_and_sound(predictor, long, tmp_path):
    out = tmp_path / "drawn" / "it's [one]; 50% é.mp4"
    predictor.draw(list(predictor.windows(long, window_seconds=5)), out)
    limit = {"timeout_seconds": 30}
    assert shown_size(out, **limit) == shown_size(long, **limit)
    before, after = measure(long, **limit), measure(out, **limit)
    assert after.audio == before.audio == ("aac",)
    assert after.duration_seconds == pytest.approx(before.duration_seconds, abs=0.05)
    assert len(list(out.parent.iterdir())) == 1
    frames = [read(VideoReader(path.read_bytes(), 310), np.array([10, 140, 300])).astype(int) for path in (long, out)]
    changed = np.abs(frames[0] - frames[1]).max(axis=3)
    assert (changed[:, 5:20, 5:60].mean(axis=(1, 2)) > 30).all()  # the box
    assert (changed[:, 80:].mean(axis=(1, 2)) < 12).all()  # below it, all as before


def test_the_text_changes_where_the_nearest_window_does(predictor, long, tmp_path):
    black = tmp_path / "black.mp4"
    black.write_bytes(from_frames(np.zeros((310, 120, 160, 3), np.uint8), fps=25, encode=QUICK))
    windows = [dataclasses.replace(each, video=black) for each in predictor.windows(long, window_seconds=5)]
    predictor.draw(windows, tmp_path / "drawn.mp4")
    frames = read(VideoReader((tmp_path / "drawn.mp4").read_bytes(), 310), np.arange(310)).astype(np.int16)
    assert (frames > 200).any(axis=(1, 2, 3)).all()
    changes = 1 + np.flatnonzero(np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 100)
    # middles at 2.5, 7.5 and 9.9 s: half-way between them
    assert changes.tolist() == pytest.approx([5 * 25, 8.7 * 25], abs=1)


@pytest.mark.parametrize(("codec", "kept"), [("libopus", "opus"), ("libvorbis", "aac"), ("pcm_s16le", "aac")])
def test_sound_is_kept_and_encoded_anew_where_players_would_not_know_it(predictor, one, tmp_path, codec, kept):
    source = with_sound(one, tmp_path / "film.mkv", "-c:v", "copy", "-c:a", codec)
    predictor.draw(list(predictor.each([source])), tmp_path / "drawn.mp4")
    assert measure(tmp_path / "drawn.mp4", timeout_seconds=30).audio == (kept,)


def test_odd_and_tiny_sizes_are_drawn_on_as_they_are(predictor, one, tmp_path):
    for width, height in ((101, 77), (48, 32)):
        small = with_sound(one, tmp_path / "film.mkv", "-vf", f"crop={width}:{height}:0:0:exact=1", "-c:v", "ffv1")
        predictor.draw(list(predictor.each([small])), tmp_path / "drawn.mp4")
        assert shown_size(tmp_path / "drawn.mp4", timeout_seconds=30) == (height, width)


def test_the_video_itself_is_never_drawn_over(predictor, one, tmp_path):
    with pytest.raises(UserError, match="is the video itself"):
        predictor.draw(list(predictor.each([one])), one)


def test_what_cannot_be_drawn_leaves_no_file(predictor, one, tmp_path):
    predictions = list(predictor.each([one]))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(b"nothing")
    with pytest.raises(UserError, match="could not be drawn on"):
        predictor.draw([dataclasses.replace(predictions[0], video=cut)], tmp_path / "drawn.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.mp4"]


# many videos, and what is printed


@pytest.fixture
def folder(root, tmp_path) -> Path:
    """Two films, a broken one, and what is no film."""
    films = tmp_path / "films"
    (films / "b").mkdir(parents=True)
    (films / "b" / "two.mp4").write_bytes(moving(1))
    (films / "a.MP4").write_bytes(moving(2))
    (films / "c.webm").write_bytes(b"broken")
    (films / "notes.txt").write_text("no film")
    (films / ".hidden.mp4").write_bytes(b"of macOS")
    return films


def test_a_folder_is_predicted_in_order_and_what_is_broken_told_in_the_end(predictor, folder, capsys):
    with pytest.raises(UserError, match="1 of 3 videos could not be used"):
        predict_all(predictor, PredictRequest([folder], top=2))
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if not line.startswith(" ")] == [
        str(folder / name) for name in ("a.MP4", "b/two.mp4", "c.webm")
    ]
    assert "gives no picture: Error opening input: Invalid data" in said[-1] and len(said) == 3 + 3 + 2


def test_json_has_a_line_for_each_video_with_the_same_numbers(predictor, folder, capsys):
    with pytest.raises(UserError):
        predict_all(predictor, PredictRequest([folder, folder / "a.MP4"], top=3, as_json=True))
    first, second, broken = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    known = predictor(folder / "a.MP4", top=3)
    assert [entry["class_name"] for entry in first["top"]] == [name for name, _ in known]
    assert [entry["probability"] for entry in first["top"]] == pytest.approx([value for _, value in known], abs=1e-5)
    assert second["video"] == str(folder / "b" / "two.mp4") and "error" not in second
    assert "Invalid data" in broken["error"] and broken["top"] == []


def test_json_of_windows_has_their_seconds_and_where_they_were_drawn(predictor, long, tmp_path, capsys):
    predict_all(predictor, PredictRequest([long], window_seconds=5, as_json=True, draw=tmp_path / "out.mp4"))
    line = json.loads(capsys.readouterr().out)
    assert [window["start_seconds"] for window in line["windows"]] == pytest.approx([0, 5, 7.4], abs=0.02)
    assert all(len(window["top"]) == len(CLASSES) for window in line["windows"])
    assert line["drawn"] == str(tmp_path / "out.mp4") and (tmp_path / "out.mp4").is_file()


def test_copies_of_a_folder_lie_as_the_videos_do(predictor, folder, tmp_path):
    (folder / "a.mov").write_bytes((folder / "a.MP4").read_bytes())
    with pytest.raises(UserError, match="1 of 4"):
        predict_all(predictor, PredictRequest([folder], draw=tmp_path / "out"))
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.mp4"))
    assert drawn == ["a-2.mp4", "a.mp4", "b/two.mp4"]
    with pytest.raises(UserError, match="is one file for 4 videos"):
        predict_all(predictor, PredictRequest([folder], draw=tmp_path / "out.mp4"))


def test_a_folder_without_videos_is_told(predictor, tmp_path):
    with pytest.raises(UserError, match=r"has no videos; known endings are \.mp4"):
        predict_all(predictor, PredictRequest([tmp_path]))


@pytest.mark.slow
def test_the_command_prints_classes_and_leaves_with_status_1_where_something_failed(root, one, tmp_path):
    (root / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    shutil.copy(PROJECT / "published.yaml", root)
    command = [sys.executable, "-m", "actionzoo.cli", "predict", VIDEOS, "--top", "1", str(one)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(one) and "%" in done.stdout.splitlines()[1]
    (tmp_path / "text.mp4").write_text("text")
    done = subprocess.run([*command, str(tmp_path / "text.mp4"), "--json"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "1 of 2 videos" in done.stderr
    assert [("error" in json.loads(line)) for line in done.stdout.splitlines()] == [False, True]
