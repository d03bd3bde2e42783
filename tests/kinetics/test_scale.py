"""Kinetics-400's shape on a laptop: all 301 parts, few clips in each. No assertion on time: figures of the whole are in
docs/data.md, made by benchmarks/scale.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FEW, MORE, ALL = 4, 44, 997
"""Clips per part; the last is Kinetics-400's."""


def measured(clips_per_part: int, *options: str) -> dict[str, dict[str, float]]:
    """The benchmark's figures, step by step. It fails where a stage does more than it should, or DVC sees a change."""
    line = [sys.executable, "benchmarks/scale.py", "--clips-per-part", str(clips_per_part), "--json", *options]
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_step_would_hold_two_gigabytes_at_the_full_number_of_clips():
    """What a step holds is a fixed amount and so much for each clip: two sizes give both."""
    few, more = measured(FEW, "--no-dvc"), measured(MORE)
    assert few.keys() < more.keys() and "dvc status" in more
    at_full = {name: more[name]["together_mb"] for name in more}
    for name in few:
        growth = (more[name]["together_mb"] - few[name]["together_mb"]) / (MORE - FEW)
        at_full[name] += max(0.0, growth) * (ALL - MORE)
    assert {name: held for name, held in at_full.items() if held > 2000} == {}
    # else nothing was measured
    assert at_full["stage resize 256"] > more["stage resize 256"]["together_mb"] > 20
