"""The last step to the network's input: from uint8 frames to normalised clips, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .transforms import Box


class Footage:
    """Frames of a clip that its views share. They move to the device once, with the first view that is wanted there."""

    def __init__(self, frames: Tensor):
        self.frames = frames
        """(F, H, W, 3) uint8 RGB."""

    def on(self, device: torch.device) -> Tensor:
        if self.frames.device != device:
            self.frames = self.frames.to(device, non_blocking=True)
        return self.frames


@dataclass(frozen=True)
class View:
    """One input of the network, not yet cut from its frames."""

    footage: Footage
    places: np.ndarray
    """int64 (T,): which of the frames, in order."""
    box: Box
    size: int
    """Side of the square that the box becomes."""
    flip: bool = False


def to_input(views: Sequence[View], *, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """(len(views), 3, T, size, size) float32 on the device: each view cut, flipped, minus mean, times 1 / std.

    mean and std are of levels 0 to 255, for R, G, B. All views have one length and one size.
    """
    shape = (len(views), 3, len(views[0].places), views[0].size, views[0].size)
    mean, scale = np.float32(mean)[:, None], 1 / np.float32(std)[:, None]
    if device.type == "cpu":
        return _by_frames(views, shape, (np.arange(256, dtype=np.float32) - mean) * scale)
    return _by_views(views, shape, torch.from_numpy(mean), torch.from_numpy(scale), device)


def _by_views(views: Sequence[View], shape: tuple[int, ...], mean: Tensor, scale: Tensor, device) -> Tensor:
    """For a GPU: few large steps."""
    out = torch.empty(shape, device=device)
    mean, scale = (values.view(3, 1, 1, 1).to(device) for values in (mean, scale))
    for view, target in zip(views, out, strict=True):
        frames, box = view.footage.on(device), view.box
        frames = frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
        frames = frames[torch.from_numpy(view.places).to(device)].permute(0, 3, 1, 2)  # (T, 3, height, width)
        if frames.shape[2:] != shape[3:]:
            # as the workers' cv2 does where there is no GPU, but for one level of 255 in some
            frames = F.interpolate(frames.float(), shape[3:], mode="bilinear", align_corners=False).round_()
        if view.flip:
            frames = frames.flip(3)
        torch.sub(frames.transpose(0, 1), mean, out=target).mul_(scale)
    return out


def _by_frames(views: Sequence[View], shape: tuple[int, ...], tables: np.ndarray) -> Tensor:
    """For the CPU: frame by frame, which stays in the cache. `tables` (3, 256) has what becomes of each level."""
    # numpy asks for large pages, without which the system takes longer to hand the memory out than we to fill it
    out = np.empty(shape, np.float32)
    planes = list(np.empty((3, *shape[3:]), np.uint8))
    for view, clip in zip(views, out, strict=True):
        box, footage = view.box, view.footage.frames.numpy()
        for number, place in enumerate(view.places.tolist()):
            frame = footage[place, box.top : box.top + box.height, box.left : box.left + box.width]
            if frame.shape[:2] != shape[3:]:
                frame = cv2.resize(frame, shape[3:][::-1], interpolation=cv2.INTER_LINEAR)
            if view.flip:
                frame = cv2.flip(frame, 1)
            cv2.split(frame, planes)
            for plane, table, target in zip(planes, tables, clip[:, number], strict=True):
                cv2.LUT(plane, table, dst=target)
    return torch.from_numpy(out)
