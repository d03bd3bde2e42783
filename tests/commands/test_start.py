"""What starts fast: nothing is imported that the command does not need. And shell completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "mlflow", "prefect", "pydantic", "dvc", "dask", "httpx", "rich", "jinja2", "matplotlib")


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "also"),
    [
        (["--help"], ("yaml",)),
        (["--version"], ("yaml",)),
        (["evaluate", "--help"], ("yaml",)),
        (["data", "--help"], ("yaml",)),
        (["predcit"], ("yaml",)),
        (["models"], ()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_imported_to_answer(words, also):
    code = (
        "import sys\n"
        "from actionzoo.cli import main\n"
        "sys.argv = ['actionzoo', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "finally:\n    print('imported:', *(name for name in sys.modules if '.' not in name))\n"
    )
    done = python(code, *words)
    imported = done.stdout.partition("imported:")[2].split()
    assert "typer" in imported and [name for name in (*HEAVY, *also) if name in imported] == []


MAIN = "import sys; from actionzoo.cli import main; sys.argv = ['actionzoo', *sys.argv[1:]]; main()"


def complete(line: str) -> list[str]:
    """What bash would offer for the last word of `line`."""
    position = str(len(line.split(" ")) - 1)
    done = python(MAIN, _ACTIONZOO_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=position)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


def test_bash_gets_a_completion_script():
    done = python(MAIN, _ACTIONZOO_COMPLETE="source_bash")
    assert done.returncode == 0 and "complete -o default -F _actionzoo_completion actionzoo" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("actionzoo pre", ["predict"]),
        ("actionzoo row", []),
        ("actionzoo data im", ["import-mmaction"]),
        ("actionzoo data states videos", ["videos_256", "videos_320"]),
        ("actionzoo params slowfast_r50_v", ["slowfast_r50_video_4x16x1_256e_kinetics400_rgb"]),
        ("actionzoo predict x v.mp4 --model slowfast_r50_v", ["slowfast_r50_video_4x16x1_256e_kinetics400_rgb"]),
        ("actionzoo predict x --dev", ["--device"]),
        ("actionzoo evaluate m c --split t", ["train", "test"]),
    ],
)
def test_commands_options_forms_and_models_complete(line, offered):
    assert complete(line) == offered
