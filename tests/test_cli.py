"""What the command line says before anything heavy is loaded."""

import subprocess
import sys

import pytest

import actionzoo
from actionzoo.cli import main

ROW = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predcit"], "did you mean predict?"),
        (["data", "reprot"], "did you mean report?"),
        (["states", "video_256"], "did you mean videos_256?"),
        (["lists", "frame_320", "out"], "did you mean frames_320?"),
        (["data", "report", "videos256"], "did you mean videos_256?"),
        (["data", "adopt", "videos_256", "list", "folder", "--split", "vall"], "did you mean val?"),
        (["test", ROW, "a.pth", "--eval", "mean_class_acuracy"], "did you mean mean_class_accuracy?"),
        (["export", ROW, "out", "--to", "onxx"], "did you mean onnx?"),
        (["predict", ROW, "a.mp4", "--window", "0"], "'0' is no number of seconds above 0"),
        (["predict", ROW, "a.mp4", "--stride", "nan"], "'nan' is no number of seconds above 0"),
        (["predict", ROW, "a.mp4", "--top", "0"], "'0' is no whole number from 1"),
        (["test", ROW, "a.pth", "--topk", "9" * 5000], "is no whole number from 1"),
        (["scores", "a", "--clips", "-1"], "'-1' is no whole number from 1"),
        (["train", ROW, "--seed", "-1"], "'-1' is no whole number from 0"),
        (["data", "report", "--pictures", "-1"], "'-1' is no whole number from 0"),
        (["ui", "--port", "70000"], "'70000' is no whole number from 1 to 65535"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_word_or_number_that_cannot_be_is_told_with_the_nearest(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["actionzoo", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_the_version_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["actionzoo", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == f"actionzoo {actionzoo.__version__}\n"


def test_rows_into_head_is_silent():
    command = f"{sys.executable} -m actionzoo.cli rows | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
