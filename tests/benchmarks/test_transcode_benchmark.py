"""The side-by-side measurement of our resize, on films that take no time."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from actionzoo.kinetics.transcode import from_frames
from tests.kinetics.small_films import QUICK

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "transcode.py"


def benchmark(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARK, "--repeats", "1", "--short-side", "64", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A wide clip, an upright one in an archive, where the wide one is too, a small one, and one that is none."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for name, height, width in (("wide", 96, 128), ("upright", 128, 96), ("small", 32, 48)):
        frames = rng.integers(0, 256, (70, height // 8, width // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        (folder / f"{name}.mp4").write_bytes(from_frames(frames, fps=25, encode=QUICK))
    with tarfile.open(folder / "part_0.tar.gz", "w:gz") as archive:
        archive.add(folder / "wide.mp4", "again.mp4")
        archive.add(folder / "upright.mp4", "upright.mp4")
    (folder / "upright.mp4").unlink()
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either, and not asked for")
    return folder


@pytest.fixture(scope="module")
def done(films) -> subprocess.CompletedProcess:
    return benchmark(films, "--encode", "crf=30", "--encode", "crf=20", "refs=2", "scaler=area")


def test_clips_are_taken_from_folders_and_archives_each_once(done):
    assert re.search(r"^2 clips, short side 64, repeats: 1$", done.stdout, re.MULTILINE)
    assert re.findall(r"^(\w+)(?:\.mp4)?: [\d.]+ against", done.stderr, re.MULTILINE) == ["again", "upright"]


def test_all_four_ratios_are_printed_with_their_limits(done):
    assert done.returncode == 0, done.stderr
    figures = r"\s+(\d+\.?\d*)\s+(\d+\.?\d*)\s+([+-]?\d+\.\d+)\s+"
    for what, limit in [
        ("CPU seconds a clip", "at most 0.6"),
        ("SSIM", "at least -0.003"),
        ("kB a clip", "at most 1.5"),
        ("decoding, CPU ms a 32x2 clip", "at least 1.4"),
    ]:
        row = re.search(rf"^{what}{figures}{limit}\s+(met|not met)$", done.stdout, re.MULTILINE)
        assert row, done.stdout
        ours, usual, ratio = map(float, row.group(1, 2, 3))
        assert ours > 0 and usual > 0
        expected = {"SSIM": ours - usual, "decoding, CPU ms a 32x2 clip": usual / ours}.get(what, ours / usual)
        assert ratio == pytest.approx(expected, rel=0.1, abs=2e-5)


def test_other_settings_get_a_line_each(done):
    """A lower crf is finer and larger."""
    ratios = r" +([\d.]+) +([+-][\d.]+) +([\d.]+) +([\d.]+) +(?:misses|all met)"
    coarse, fine = (
        [float(ratio) for ratio in re.search(f"^{name}{ratios}", done.stdout, re.MULTILINE).groups()]
        for name in ("crf=30", "crf=20 refs=2 scaler=area")
    )
    assert fine[2] > 1.3 * coarse[2]
    assert fine[1] != coarse[1]


def test_clips_that_cannot_be_compared_are_named(done):
    """The usual way enlarges a clip, ours does not."""
    assert re.search(r"^small\.mp4 is left out: .*\(70, 32, 48\).*\(70, 64, 96\)", done.stdout, re.MULTILINE)
    assert re.search(r"^broken\.mp4 is left out: \S", done.stdout, re.MULTILINE)
    assert "notes.txt" not in done.stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nowhere"], "nowhere is not there; give files or folders of videos"),
        (["--encode", "crf=99"], "crf"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, complaint):
    done = benchmark(*arguments)
    assert done.returncode == 1
    assert complaint in done.stderr and "Traceback" not in done.stderr
