"""Seconds that count once, and memory that was really in use."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from actionzoo.engine.benchmark import (
    Execution,
    Pass,
    Turns,
    Video,
    seconds_per_video,
    seconds_quartiles,
    take_turns,
    train_steps,
)

CPU = Execution(torch.device("cpu"))
SHAPE = (3, 2, 4, 4)


class Sleeper(nn.Module):
    """Gives three scores a clip, after a while."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.clips: list[int] = []

    def forward(self, clips):
        self.clips.append(len(clips))
        time.sleep(0.02)
        return clips.mean((1, 2, 3, 4))[:, None] + self.weight


def timed(model, **more):
    return seconds_per_video(model, Video(SHAPE, num_views=25), CPU, **more)


def test_a_video_is_all_its_views_in_parts_of_ten():
    model = Sleeper()
    times = timed(model, warmup=1, most=2)
    assert model.clips == [10, 10, 5] * 3 and len(times) == 2
    assert all(0.06 <= seconds < 0.3 for seconds in times)


def test_warm_up_does_not_count_and_no_sample_counts_twice():
    model = Sleeper()
    began = time.perf_counter()
    times = timed(model, warmup=2, most=4)
    assert sum(times) <= (time.perf_counter() - began) * 4 / 6 + 0.05
    assert len(times) == 4 and len(model.clips) == 3 * 6


def test_a_slow_network_is_timed_on_three_videos():
    assert len(timed(Sleeper(), seconds=0.01)) == 3


def test_turns_alternate_so_that_both_meet_the_same_load():
    turns_taken = []

    def alone():
        turns_taken.append("alone")
        return 0.2

    def run_pass():
        turns_taken.append("pass")
        return Pass(clips=2, seconds=0.8)

    turns = take_turns(alone, run_pass, rounds=3, seconds_alone=0.5)
    assert turns_taken == ["alone", "alone", "alone", "pass"] * 3
    assert turns.alone == [0.2] * 9 and turns.with_decoding == [0.4] * 3
    assert not turns.machine_was_busy


def test_slow_turns_are_three_and_a_pass_without_clips_is_none():
    turns = take_turns(lambda: 60.0, lambda: Pass(clips=0, seconds=1.0), rounds=5, seconds=0.0)
    assert turns.alone == [60.0] * 3 and turns.passes == [] and not turns.machine_was_busy


@pytest.mark.parametrize(
    ("alone", "with_decoding", "is_busy"),
    [
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], False),
        ([1.0, 1.0, 1.0], [0.9, 0.9, 0.9], True),  # faster with decoding than without: cannot be
        ([1.0, 1.0, 5.0], [1.2, 1.2, 1.2], True),  # quartiles 1 and 3
        ([1.0, 1.0, 1.0], [1.2, 2.0, 3.0], True),
        ([1.0, 1.1, 1.2], [1.3, 1.3, 1.4], False),
        ([1.0, 1.0, 1.0], [], False),
        ([1.0, 2.0, 3.0], [], True),
    ],
)
def test_a_machine_was_busy_where_decoding_made_it_faster_or_the_spread_is_too_wide(alone, with_decoding, is_busy):
    turns = Turns(alone, [Pass(clips=4, seconds=4 * seconds) for seconds in with_decoding])
    assert turns.machine_was_busy == is_busy


def test_quartiles_of_times():
    assert seconds_quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert seconds_quartiles([2.0]) == (2.0, 2.0, 2.0)


def test_training_is_of_the_batch_and_leaves_other_weights():
    model = Sleeper().train()
    train_steps(model, SHAPE, CPU, batch_size=6, momentum=0.9)
    assert model.clips == [6, 6] and model.training
    assert not torch.equal(model.weight, torch.zeros(3))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of a process is read from Linux's /proc")
def test_peak_of_a_process_is_what_it_used_beyond_its_start_and_is_forgotten_on_restart():
    code = """
import torch
from actionzoo.engine.benchmark import PeakMemory
before = torch.ones(100 * 2**18)
memory = PeakMemory(torch.device("cpu"))
torch.ones(300 * 2**18)
high = memory.megabytes()
memory.restart()
print(high, memory.megabytes())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    high, after = map(float, printed.split())
    assert 295 <= high < 320 and after < 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts a GPU's tensors")
def test_peak_on_a_gpu_is_that_of_its_tensors():
    from actionzoo.engine.benchmark import PeakMemory

    device = torch.device("cuda")
    kept = torch.ones(10 * 2**18, device=device)
    memory = PeakMemory(device)
    torch.ones(30 * 2**18, device=device)
    assert memory.megabytes() >= 40
    memory.restart()
    assert 10 <= memory.megabytes() < 40 and len(kept)
