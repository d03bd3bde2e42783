"""The synthetic mirror: the public layout, classes that differ in motion alone, and every flaw of the real data."""

import csv
import io
import itertools
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from actionzoo.kinetics.archives import read_archive
from actionzoo.kinetics.serve import serve
from actionzoo.kinetics.synthetic import MOTIONS, Mirror, make_mirror, render
from actionzoo.kinetics.transcode import BadVideo, Encode, _describe, transcode


def clips(mirror: Path, split: str) -> dict[str, bytes]:
    parts = sorted((mirror / "400" / split).glob("part_*.tar.gz"))
    return {name: data for part in parts for name, data in read_archive(part)}


def listed(mirror: Path, split: str) -> dict[str, str]:
    with open(mirror / f"400/annotations/{split}.csv", newline="") as file:
        return {
            f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}": row["label"]
            for row in csv.DictReader(file)
        }


@pytest.mark.slow
def test_the_layout_is_the_public_mirrors(tiny_mirror):
    found = {str(path.relative_to(tiny_mirror)) for path in tiny_mirror.rglob("*") if path.is_file()}
    assert found == {
        "mirror.json",
        "400/replacement_for_corrupted_k400.tgz",
        *(f"400/annotations/{split}.csv" for split in ("train", "val", "test")),
        *(f"400/{split}/k400_{split}_path.txt" for split in ("train", "val", "test")),
        *(f"400/{split}/part_{i}.tar.gz" for split in ("train", "val", "test") for i in (0, 1)),
    }
    assert (tiny_mirror / "400/val/k400_val_path.txt").read_text().splitlines() == [
        "https://s3.amazonaws.com/kinetics/400/val/part_0.tar.gz",
        "https://s3.amazonaws.com/kinetics/400/val/part_1.tar.gz",
    ]


@pytest.mark.slow
def test_equal_arguments_give_equal_bytes_and_another_seed_others(tmp_path, tiny_mirror):
    make_mirror(tmp_path / "again", Mirror(train_clips=1, val_clips=1, test_clips=1, parts=2, seed=0), jobs=1)
    make_mirror(tmp_path / "other", Mirror(train_clips=0, val_clips=0, test_clips=1, parts=2, seed=1))
    part = "400/test/part_0.tar.gz"
    assert (tmp_path / "again" / part).read_bytes() == (tiny_mirror / part).read_bytes()
    assert (tmp_path / "other" / part).read_bytes() != (tiny_mirror / part).read_bytes()


@pytest.mark.slow
def test_a_mirror_that_is_there_is_not_made_again(tiny_mirror):
    before = (tiny_mirror / "400/train/part_0.tar.gz").stat().st_mtime_ns
    make_mirror(tiny_mirror, Mirror(train_clips=1, val_clips=1, test_clips=1, parts=2, seed=0))
    assert (tiny_mirror / "400/train/part_0.tar.gz").stat().st_mtime_ns == before


def test_every_class_has_its_clips(tiny_mirror):
    per_class = {name: list(listed(tiny_mirror, "val").values()).count(name) for name in MOTIONS}
    assert per_class == dict.fromkeys(MOTIONS, 1)


def test_train_has_the_flaws_of_the_real_data(tiny_mirror):
    there, lines = clips(tiny_mirror, "train"), listed(tiny_mirror, "train")
    replacements = dict(read_archive(tiny_mirror / "400/replacement_for_corrupted_k400.tgz"))
    assert len(lines) == 4 + 2
    assert len(lines.keys() - there.keys()) == 1, "a line whose clip is nowhere"
    assert len(there.keys() - lines.keys()) == 1, "a clip that no line lists"
    assert [name for name, data in there.items() if not data] and sum(not data for data in there.values()) == 1
    (cut_off,) = replacements
    with pytest.raises(BadVideo, match="moov atom not found"):
        transcode(there[cut_off], short_side=64, encode=Encode(), timeout_seconds=60)
    assert transcode(replacements[cut_off], short_side=64, encode=Encode(), timeout_seconds=60).num_frames >= 64


def test_parts_have_the_files_of_macos(tiny_mirror):
    with tarfile.open(tiny_mirror / "400/val/part_0.tar.gz") as archive:
        assert "._junk.mp4" in archive.getnames()


def test_clips_are_long_enough_for_32_frames_two_apart_and_larger_than_320(tiny_mirror):
    for data in clips(tiny_mirror, "val").values():
        encoded = transcode(data, short_side=320, encode=Encode(preset="ultrafast"), timeout_seconds=60)
        assert encoded.num_frames >= 64
        assert min(encoded.height, encoded.width) == 320


def rendered(motion: str, seed: int, **size: int) -> np.ndarray:
    return render(motion, np.random.default_rng(seed), **{"num_frames": 64, "height": 120, "width": 160} | size)


def flows(frames: np.ndarray) -> np.ndarray:
    """Motion of every pixel from one frame to the next: (T - 1, H, W, 2), x and y in pixels."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return np.stack(
        [cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 2, 15, 2, 5, 1.1, 0) for a, b in itertools.pairwise(grey)]
    )


def vertical_flow(frames: np.ndarray) -> float:
    return float(flows(frames)[..., 1].mean())


@pytest.mark.parametrize("seed", range(3))
def test_up_moves_up_all_the_time(seed):
    assert flows(rendered("up", seed)[:24])[..., 1].mean(axis=(1, 2)).max() < -0.5


@pytest.mark.parametrize("seed", range(3))
def test_shake_moves_up_and_down_again_within_twelve_frames(seed):
    steps = flows(rendered("shake", seed)[:24])[..., 1].mean(axis=(1, 2))
    assert (steps[:12] < -0.5).any() and (steps[:12] > 0.5).any()
    assert (steps[12:] < -0.5).any() and (steps[12:] > 0.5).any()


@pytest.mark.parametrize("seed", range(3))
def test_grow_moves_away_from_the_centre_on_all_sides(seed):
    flow = flows(rendered("grow", seed)[:24]).mean(axis=0)
    height, width, _ = flow.shape
    assert flow[: height // 4, :, 1].mean() < -0.2 < 0.2 < flow[-height // 4 :, :, 1].mean()
    assert flow[:, : width // 4, 0].mean() < -0.2 < 0.2 < flow[:, -width // 4 :, 0].mean()


def test_still_does_not_move():
    frames = rendered("still", 0)
    assert (frames == frames[0]).all()


def test_the_turned_phones_clip_is_stored_lying_and_rises_once_it_stands(tiny_mirror):
    import decord

    (video_id,) = (name for name, label in listed(tiny_mirror, "val").items() if MOTIONS[label] == "up")
    source = clips(tiny_mirror, "val")[video_id]
    stored = _describe(source, damage="")
    seen = transcode(source, short_side=120, encode=Encode(), timeout_seconds=60)
    assert (stored.height > stored.width) != (seen.height > seen.width)
    frames = decord.VideoReader(io.BytesIO(seen.data), num_threads=1)[:24].asnumpy()
    assert vertical_flow(frames) < -0.3


@pytest.mark.slow
def test_no_single_frame_tells_the_class():
    """Mean brightness, contrast and edges of one frame: alike for all classes, within sampling error."""
    facts = {}
    for number, motion in enumerate(MOTIONS.values()):
        seeds = range(1000 * number, 1000 * number + 300)
        frames = [rendered(motion, seed, num_frames=seed % 40 + 1)[-1] for seed in seeds]
        edges = [cv2.Canny(frame, 100, 200).mean() for frame in frames]
        facts[motion] = np.array([[f.mean(), f.std(), e] for f, e in zip(frames, edges, strict=True)])
    for one in facts.values():
        for other in facts.values():
            error = np.sqrt(one.var(axis=0) / len(one) + other.var(axis=0) / len(other))
            assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) < 4 * error + 1e-9).all()


@pytest.fixture
def served(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a b.bin").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_text("secret")
    with serve(tmp_path / "root") as url:
        yield url


def get(url: str, **headers: str):
    request = urllib.request.Request(url, headers={key.replace("_", "-"): value for key, value in headers.items()})
    return urllib.request.urlopen(request, timeout=10)


def test_the_server_gives_the_rest_of_a_file(served):
    with get(f"{served}/a%20b.bin", Range="bytes=90-") as answer:
        assert (answer.status, answer.read()) == (206, bytes(range(90, 100)))
        assert answer.headers["Content-Range"] == "bytes 90-99/100"


def test_the_server_gives_the_whole_if_the_version_is_another(served):
    with get(f"{served}/a%20b.bin") as answer:
        etag = answer.headers["ETag"]
    with get(f"{served}/a%20b.bin", Range="bytes=90-", If_Range=etag) as answer:
        assert answer.status == 206
    with get(f"{served}/a%20b.bin", Range="bytes=90-", If_Range='"other"') as answer:
        assert (answer.status, len(answer.read())) == (200, 100)


@pytest.mark.parametrize("path, status", [("/../secret", 404), ("/%2e%2e/secret", 404), ("/", 404), ("/no", 404)])
def test_the_server_gives_nothing_from_outside(served, path, status):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(served + path)
    assert error.value.code == status


def test_the_server_refuses_a_range_beyond_the_end(served):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(f"{served}/a%20b.bin", Range="bytes=100-")
    assert (error.value.code, error.value.headers["Content-Range"]) == (416, "bytes */100")
