import json

import pytest

from actionzoo.process import progress as module
from actionzoo.process.progress import FOLDER_VARIABLE, Snapshot, is_progress_line, progress, read_progress


class Clock:
    """Stands for `time` in the module."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_progress_is_written_where_the_environment_asks_for_it(folder):
    with progress("clips") as on_progress:
        on_progress("resize to 256, clips", 120, 300)
    assert read_progress(folder) == Snapshot("resize to 256, clips", 120, 300, "clips", None)
    assert [path.name for path in folder.iterdir()] == ["progress.json"]


def test_without_a_folder_in_the_environment_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with progress("clips") as on_progress:
        on_progress("evaluate", 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_time_left_follows_from_the_speed_of_this_process(folder, clock):
    """A training that is resumed at step 900 has not done 900 steps in its first second."""
    with progress("steps", lines=False, per_epoch=100) as on_progress:
        on_progress("row", 900, 2000)
        clock.now += 10
        on_progress("row", 905, 2000)
    found = read_progress(folder)
    assert found.seconds_left == pytest.approx(2 * 1095)
    assert found.text() == "row: epoch 10 of 20, 36 min left"


def test_the_file_is_written_once_a_second_and_at_the_end(folder, clock):
    with progress("clips", lines=False) as on_progress:
        for done, expected in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5)]:
            clock.now += 0.6
            on_progress("evaluate", done, 5)
            assert read_progress(folder).done == expected


def test_a_folder_that_is_gone_costs_no_work(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "gone"))
    with progress("clips") as on_progress:
        on_progress("evaluate", 1, 2)
    assert read_progress(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (Snapshot("evaluate", 120, 19_796, "clips", 50.4), "evaluate: 120 of 19,796 clips, 50 s left"),
        (Snapshot("download, bytes", 3_100_000_000, 43_600_000_000, "bytes", 7_800.0),
         "download: 3,100 of 43,600 MB, 2 h 10 min left"),
        (Snapshot("row", 0, 400, "steps", None, per_epoch=4), "row: epoch 1 of 100"),
        (Snapshot("row", 8, 400, "steps", 273_600.0, per_epoch=4), "row: epoch 3 of 100, 3 d 4 h left"),
        (Snapshot("row", 400, 400, "steps", 0.0, per_epoch=4), "row: epoch 100 of 100"),
    ],
)  # fmt: skip
def test_how_far_it_is_in_words(snapshot, text):
    assert snapshot.text() == text


def test_a_line_of_progress_is_known_again(capsys, clock):
    with progress("clips") as on_progress:
        on_progress("evaluate", 1, 300)
        clock.now += 60
        on_progress("evaluate", 20, 300)
        on_progress("evaluate", 300, 300)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["evaluate: 20 of 300 clips, 15 min left", "evaluate: 300 of 300 clips"]
    assert all(map(is_progress_line, lines))


@pytest.mark.parametrize(
    "line", ["evaluate: error: 3 of 4 clips", "resize: 3 of 4 clips are missing; run it again", "3 of 4 clips", ""]
)
def test_other_lines_are_no_progress(line):
    assert not is_progress_line(line)


@pytest.mark.parametrize("content", ["", "[]", '{"what": "x"}', json.dumps({"what": 1, "done": "a", "total": None,
                         "unit": "clips", "seconds_left": None}), "{" * 100_000])  # fmt: skip
def test_a_damaged_file_says_nothing(folder, content):
    (folder / "progress.json").write_text(content)
    assert read_progress(folder) is None
