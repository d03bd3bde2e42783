"""How long a stage that is stopped has to save its work."""

from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.params import load_params
from actionzoo.process.supervisor import GRACE_SECONDS
from flows.stage.grace import grace_seconds

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_file_says_how_long(tmp_path):
    assert grace_seconds(ROOT) == load_params(ROOT / "params.yaml").runtime.grace_seconds == GRACE_SECONDS


def test_a_graph_without_params_has_the_usual_grace(tmp_path):
    assert grace_seconds(tmp_path / "repository") == GRACE_SECONDS


def test_a_repository_in_the_project_has_the_grace_of_the_project(tmp_path):
    (tmp_path / "params.yaml").write_text("runtime: {grace_seconds: 90}")
    assert grace_seconds(tmp_path / "reproduction") == 90


@pytest.mark.parametrize("value", ["soon", "0", "-1", "true", "null"])
def test_a_grace_that_is_no_time_is_told(tmp_path, value):
    (tmp_path / "params.yaml").write_text(f"runtime: {{grace_seconds: {value}}}")
    with pytest.raises(UserError, match=r"runtime\.grace_seconds is .*; write a number above 0"):
        grace_seconds(tmp_path)
