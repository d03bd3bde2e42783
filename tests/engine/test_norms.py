"""Batch norm over parts of a batch."""

import copy

import pytest
import torch
from torch import nn

from actionzoo.engine.norms import GhostBatchNorm3d, split_norms


def norm(channels=4):
    torch.manual_seed(0)
    made = nn.BatchNorm3d(channels)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


def test_each_part_of_the_batch_is_normalised_by_itself():
    plain, ghost = norm(), nn.Sequential(norm())
    split_norms(ghost, 2)
    clips = torch.randn(6, 4, 2, 3, 3) * torch.arange(1, 7).view(6, 1, 1, 1, 1)
    torch.testing.assert_close(ghost(clips), torch.cat([plain(part) for part in clips.split(2)]))


def test_running_statistics_take_the_mean_of_the_parts_once():
    ghost = nn.Sequential(norm())
    split_norms(ghost, 2)
    clips = torch.randn(4, 4, 2, 3, 3)
    ghost(clips)
    parts = [part.transpose(0, 1).flatten(1) for part in clips.split(2)]
    mean = torch.stack([part.mean(1) for part in parts]).mean(0)
    var = torch.stack([part.var(1) for part in parts]).mean(0)
    torch.testing.assert_close(ghost[0].running_mean, 0.1 * mean)
    torch.testing.assert_close(ghost[0].running_var, 0.9 + 0.1 * var)
    assert ghost[0].num_batches_tracked == 1


@pytest.mark.parametrize("clips", [1, 2, 3, 5])
def test_a_rest_of_one_clip_is_not_normalised_alone(clips):
    ghost = nn.Sequential(norm())
    split_norms(ghost, 2)
    assert ghost(torch.randn(clips, 4, 2, 3, 3)).isfinite().all()


def test_state_and_evaluation_stay_what_they_were():
    plain = nn.Sequential(nn.Conv3d(3, 4, 1), norm(), nn.BatchNorm1d(4))
    ghost = copy.deepcopy(plain)
    split_norms(ghost, 2)
    assert type(ghost[1]) is GhostBatchNorm3d and type(ghost[2]) is nn.BatchNorm1d
    assert list(ghost.state_dict()) == list(plain.state_dict())
    clips = torch.randn(4, 3, 2, 3, 3)
    torch.testing.assert_close(ghost[:2].eval()(clips), plain[:2].eval()(clips))
