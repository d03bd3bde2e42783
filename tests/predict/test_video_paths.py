"""What is wrong with a request is said before a network is looked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.predict.video_paths import PredictRequest, check_request

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def film(tmp_path) -> Path:
    (tmp_path / "film.mp4").write_bytes(b"film")
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["window", "stride"])
def test_a_window_of_no_length_is_refused(film, option, seconds):
    with pytest.raises(UserError, match=f"--{option} .*: give more than 0 seconds"):
        check_request(PredictRequest([film], **{f"{option}_seconds": seconds}))


@pytest.mark.parametrize("draw", ["out.avi", "out.mov", "notes"])
def test_a_copy_that_would_be_no_mp4_is_refused(film, tmp_path, draw):
    (tmp_path / "notes").write_text("a file")
    with pytest.raises(UserError, match=r"--draw .*\.mp4"):
        check_request(PredictRequest([film], draw=tmp_path / draw))


def test_the_video_itself_is_no_place_for_its_copy(film, tmp_path):
    for draw in (film, tmp_path):
        with pytest.raises(UserError, match="is the video itself"):
            check_request(PredictRequest([film], draw=draw))


def test_where_no_video_can_be_read_all_are_named(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.mp4")
    missing = tmp_path / "none.mp4"
    with pytest.raises(UserError, match=r"none\.mp4 is not there; .*pipe\.mp4 is no regular file"):
        check_request(PredictRequest([missing, tmp_path / "pipe.mp4"], as_json=True))
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"video": str(missing), "error": f"{missing} is not there", "top": []}


def test_where_some_can_be_read_the_others_are_named_later(film, tmp_path):
    check_request(PredictRequest([tmp_path / "none.mp4", film]))


def test_a_name_that_no_file_can_have_is_told(tmp_path):
    for name in ("a\0b.mp4", "x" * 5000 + ".mp4"):
        with pytest.raises(UserError, match=r"cannot be read|is not there"):
            check_request(PredictRequest([tmp_path / name]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict NONE none.mp4", "none.mp4 is not there"),
        ("predict NONE film.mp4 --window 0", "argument --window: '0' is no number"),
        ("predict NONE film.mp4 --stride -2", "argument --stride: '-2' is no number"),
        ("predict NONE film.mp4 --draw out.avi", "--draw out.avi"),
        ("export NONE --to torch.export out.pt", "call it out.pt2"),
        ("export NONE --to torchscript .", "is a folder"),
        ("export NONE --to torchscript film.mp4/out.pt", "film.mp4 is a file, not a folder"),
        ("predict NONE film.mp4", "recipes.NONE is unknown"),
        ("predict NONE.pth film.mp4", "NONE.pth is not there"),
        ("predict NONE film.mp4 --classes none.txt", "none.txt is not there"),
    ],
)
def test_the_command_says_it_without_torch(film, words, said):
    """A fault that costs seconds of imports before it is told is told too late."""
    shutil.copy(PROJECT / "params.yaml", film.parent)
    shutil.copy(PROJECT / "published.yaml", film.parent)
    program = (
        "import sys\n"
        "from actionzoo.cli import main\n"
        f"sys.argv = {['actionzoo', *words.split()]!r}\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=film.parent, capture_output=True, text=True)
    status = 2 if said.startswith("argument") else 1  # as argparse leaves, and as we do
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    if words.startswith("export") or "film.mp4 --" in words.replace("--classes", "") or "none.mp4" in words:
        assert done.stdout.strip() == "False"
