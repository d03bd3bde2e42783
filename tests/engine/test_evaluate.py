"""Views through a network: so many at a time, in a precision, whatever memory there is."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from actionzoo.engine.evaluate import Inference, evaluate, view_logits
from actionzoo.errors import UserError


class Network(nn.Module):
    """Notes how many views it gets at once; more than `room` do not fit."""

    def __init__(self, room=1000):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.room, self.sizes = nn.Linear(4, 3), room, []

    def forward(self, views):
        if len(views) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(len(views))
        assert not self.training
        return self.layer(views)


def batch(clips, num_views=6, undecodable=()):
    generator = torch.Generator().manual_seed(len(clips[0]) if clips else 0)
    views = torch.randn(len(clips) * num_views, 4, generator=generator)
    labels = torch.zeros(len(clips), dtype=torch.int64)
    return SimpleNamespace(views=views, labels=labels, video_ids=list(clips), undecodable=list(undecodable))


def logits_of(network, batches, *, max_views=10, precision=None, **options):
    return list(view_logits(network, batches, Inference(lambda views: views, max_views, precision), **options))


def test_a_clips_views_pass_in_chunks_and_stay_side_by_side():
    network, one = Network(), batch(["a", "b"])
    (found,) = logits_of(network, [one], max_views=5)
    assert network.sizes == [5, 5, 2] and found.logits.shape == (2, 6, 3)
    torch.testing.assert_close(found.logits.flatten(0, 1), network.layer(one.views))
    assert found.fp32_logits is None and network.training


def test_where_memory_runs_out_the_chunk_is_halved_and_that_is_logged():
    network, texts = Network(room=3), []
    found = logits_of(network, [batch(["a"], 10), batch(["b"], 10)], max_views=10, on_text=texts.append)
    assert network.sizes == [2] * 10 and len(found) == 2
    assert (
        texts[0].startswith("the GPU's memory does not hold 10 views (CUDA out of memory") and "5 at a time" in texts[0]
    )
    assert "2 at a time" in texts[1] and len(texts) == 2
    torch.testing.assert_close(found[0].logits[0], network.layer(batch(["a"], 10).views))


def test_where_not_even_one_view_fits_the_user_is_told():
    with pytest.raises(UserError, match=r"does not hold one view .* runtime.precision to bf16"):
        logits_of(Network(room=0), [batch(["a"])], max_views=4)


def test_first_clips_are_computed_in_fp32_as_well():
    network = Network()
    first, second = logits_of(
        network, [batch(["a"]), batch(["b"])], precision="bf16", is_compared=lambda video_id: video_id == "a"
    )
    assert second.fp32_logits is None
    torch.testing.assert_close(first.fp32_logits[0], network.layer(batch(["a"]).views))
    difference = (first.fp32_logits - first.logits).abs().max().item()
    assert 0 < difference < 0.05


def test_tf32_is_as_it_was_behind_a_test():
    before = torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        logits_of(Network(), [batch(["a"])], precision="fp32" if allowed else "tf32")
        assert torch.backends.cudnn.allow_tf32 is allowed
    torch.backends.cudnn.allow_tf32 = before


def test_clips_that_do_not_decode_are_named():
    (found,) = logits_of(Network(), [batch([], undecodable=["a: no frames"])])
    assert found.undecodable == ["a: no frames"] and not found.video_ids
    with pytest.raises(UserError, match="no clip decoded: a: no frames"):
        evaluate(Network(), [batch([], undecodable=["a: no frames"])], Inference(lambda views: views))


def test_every_module_is_left_in_its_own_mode():
    """A frozen module is in eval mode while the others train."""
    network = nn.Sequential(Network(), nn.Dropout(0.5)).train()
    network[0].eval()
    logits_of(network, [batch(["a"])])
    assert [module.training for module in network.modules()] == [True, False, False, True]
