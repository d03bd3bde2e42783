"""A line of a manifest with every field known."""

import dataclasses

from actionzoo.kinetics.manifest import Clip


def clip(video_id: str = "--QUuC4vJs_000084_000094", **changes) -> Clip:
    whole = Clip(
        video_id=video_id,
        split="val",
        label=0,
        class_name="abseiling",
        state="ok",
        shard="val/part_007.tar",
        offset=512,
        size=1000,
        num_frames=250,
        width=340,
        height=256,
        fps=29.97,
        sha256="0" * 64,
    )
    return dataclasses.replace(whole, **changes)
