"""Small files of view logits."""

import torch

from actionzoo.engine.views import ViewsHeader, write_views

ABOUT = {
    "dataset": "demo",
    "split": "val",
    "precision": "fp32",
    "checkpoint_md5": "6b",
    "list_sha256": "5a",
    "missing": 0,
    "undecodable": 0,
}


def views_file(
    path, clips=3, num_clips=2, num_crops=3, classes=("a", "b"), labels=None, seed=0, ids=None, logits=None, **about
):
    """Random logits; what a test needs to be otherwise is said by name."""
    if logits is None:
        logits = torch.randn(clips, num_clips * num_crops, len(classes), generator=torch.Generator().manual_seed(seed))
    header = ViewsHeader(
        video_ids=ids or [f"clip{number:03d}" for number in range(clips)],
        labels=labels or [number % len(classes) for number in range(clips)],
        num_clips=num_clips,
        num_crops=num_crops,
        classes=classes,
        about=ABOUT | {"model": path.stem, "listed": clips} | about,
    )
    write_views(path, header, logits)
    return logits
