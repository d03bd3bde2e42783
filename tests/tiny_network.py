"""A network of a few weights in the place of a row's, and its test by as many processes as torchrun started.

torchrun --nproc-per-node 2 -m tests.tiny_network ROOT VIEWS [DIE_AFTER]: killed once that many videos are seen
"""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from actionzoo.engine import finished
from actionzoo.engine.distributed import World, joined
from actionzoo.job import Job
from actionzoo.jobs.evaluated_clips import evaluated_clips
from actionzoo.jobs.measure import Outcome, Request, Subject, measure
from actionzoo.kinetics.manifest import Clip, read_manifest, write_manifest
from actionzoo.params import Params, load_params

PROJECT = Path(__file__).resolve().parents[1]
ROW = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CLASSES = ["a", "b", "c", "d"]


class TinyNetwork(nn.Module):
    """Colours and motion of a clip, weighed at random. Calls `on_pass` each time."""

    def __init__(self, on_pass=lambda number: None):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.on_pass, self.passes = nn.Linear(6, len(CLASSES)), on_pass, 0

    def forward(self, clip: Tensor) -> Tensor:  # (N, 3, T, H, W)
        self.passes += 1
        self.on_pass(self.passes)
        features = torch.cat([clip.mean((2, 3, 4)), clip.diff(dim=2).abs().mean((2, 3, 4))], dim=1)
        return self.layer(features)


def tiny_params(**runtime) -> Params:
    """Those of the demo on this machine's CPU, this process decoding."""
    params = load_params(PROJECT / "params.yaml")
    runtime = {"device": "cpu", "workers": 0} | runtime
    return dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, **runtime))


def outcome_of(
    root: Path, views: Path, *, on_pass=lambda number: None, params=None, world=None, **how
) -> Outcome | None:
    """All views of the val clips through a TinyNetwork."""
    job = Job.of(params or tiny_params(), ROW, root)
    mapping = how.pop("label_mapping", None)
    subject = Subject(
        network=TinyNetwork(on_pass),
        classes=CLASSES,
        checkpoint_md5="5a",
        fingerprint="f",
        label_mapping=mapping,
    )
    request = Request(
        clips=evaluated_clips(job, "val"),
        scratch=job.evaluation_scratch(subject.checkpoint_md5, "val"),
        views=views,
        **({"average_clips": job.recipe.test.average_clips} | how),
    )
    return measure(job, subject, request, world or World())


def val_clips(root: Path) -> list[Clip]:
    return [clip for clip in read_manifest(root / "data/demo/videos_256/manifest.csv") if clip.split == "val"]


def with_manifest(root: Path, change: Callable[[Clip], Clip]) -> Path:
    """The project's shards as they are, and a manifest with changed lines."""
    form = root / "data/demo/videos_256"
    manifest = list(map(change, read_manifest(form / "manifest.csv")))
    if (root / "data").is_symlink():
        source = form.resolve()
        (root / "data").unlink()
        form.mkdir(parents=True)
        for path in source.iterdir():
            (form / path.name).symlink_to(path)
    (form / "manifest.csv").unlink()
    write_manifest(form / "manifest.csv", manifest)
    return root


def main(root: Path, views: Path, die_after: int | None) -> None:
    torch.set_num_threads(1)
    finished.SAVE_CLIPS = 1

    def die(number: int) -> None:
        if number > (die_after or number):
            os.kill(os.getpid(), signal.SIGKILL)

    with joined("cpu") as world:
        outcome = outcome_of(root, views, on_pass=die, params=tiny_params(max_views=2), world=world)
        if outcome:
            views.with_suffix(".json").write_text(json.dumps(outcome.result.as_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
