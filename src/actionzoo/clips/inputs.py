"""The last step to the network's input: uint8 frames become normalised clips, on the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .transforms import Box


class Footage:
    """Frames of a clip that its views share. They move to the device once, with the first view."""

    def __init__(self, frames: Tensor):
        self.frames = frames
        """(F, 3, H, W) uint8 RGB."""

    def on(self, device: torch.device) -> Tensor:
        """(F, 3, H, W) uint8 on the device, where they stay."""
        if self.frames.device != device:
            self.frames = self.frames.to(device, non_blocking=True)
        return self.frames


@dataclass(frozen=True)
class View:
    """One input of the network, before it is cut from its frames."""

    footage: Footage
    frame_indices: np.ndarray
    """int64 (T,), into the footage's frames, in the view's order."""
    box: Box
    size: int
    """Side of the square that the box becomes, in pixels."""
    flip: bool = False


class ToInput:
    """Views -> the network's input, (len(views), 3, T, size, size) float32 on the device: each view cut, resized,
    mirrored, minus mean, times 1 / std.

    mean and std are of levels 0 to 255, for R, G, B. All views of a call have one length and one size. `layout` is the
    memory format of the tensor, torch.contiguous_format or torch.channels_last_3d.

    **A tensor is valid until the next call**: on a CPU, a contiguous one lies in memory that the next call overwrites.
    (The system takes as long to hand out 19 MB per clip as filling them takes; torch reuses a GPU's memory by itself.)
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        self.device, self.layout = device, layout
        self._mean, self._scale = np.asarray(mean, np.float32), 1 / np.asarray(std, np.float32)
        self._memory = np.empty(0, np.float32)

    def __call__(self, views: Sequence[View]) -> Tensor:
        return self._contiguous(views).contiguous(memory_format=self.layout)

    def _contiguous(self, views: Sequence[View]) -> Tensor:
        shape = (len(views), 3, len(views[0].frame_indices), views[0].size, views[0].size)
        if self.device.type != "cpu":
            return _by_views(views, torch.empty(shape, device=self.device), self._mean, self._scale)
        size = math.prod(shape)
        if len(self._memory) < size:
            # numpy asks for large pages, which cost least
            self._memory = np.empty(size, np.float32)
        return _by_frames(views, self._memory[:size].reshape(shape), self._mean, self._scale)


def to_input(views: Sequence[View], *, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """The same for a single call: the tensor stays valid."""
    return ToInput(mean=mean, std=std, device=device)(views)


def _by_views(views: Sequence[View], out: Tensor, mean: np.ndarray, scale: np.ndarray) -> Tensor:
    """For a GPU: few large operations."""
    device, size = out.device, out.shape[3:]
    means, scales = (torch.from_numpy(values).view(3, 1, 1, 1).to(device) for values in (mean, scale))
    for view, target in zip(views, out, strict=True):
        box = view.box
        frames = view.footage.on(device)[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        frames = frames[torch.from_numpy(view.frame_indices).to(device)]
        if frames.shape[2:] != size:
            # equals cv2 in the workers, which resize for a CPU, up to one level of 255
            frames = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False).round_()
        if view.flip:
            frames = frames.flip(3)
        torch.sub(frames.transpose(0, 1), means, out=target).mul_(scales)
    return out


def _by_frames(views: Sequence[View], out: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Tensor:
    """For a CPU: plane by plane, so that each is written to memory once."""
    size = out.shape[3:]
    factors, offsets = scale.tolist(), (-mean * scale).tolist()
    for view, clip in zip(views, out, strict=True):
        box, footage = view.box, view.footage.frames.numpy()
        for number, index in enumerate(view.frame_indices.tolist()):
            frame = footage[index, :, box.top : box.top + box.height, box.left : box.left + box.width]
            for plane, factor, offset, target in zip(frame, factors, offsets, clip[:, number], strict=True):
                if plane.shape != size:
                    plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
                if view.flip:
                    plane = cv2.flip(plane, 1)
                # factor * plane + offset in one pass; the second plane has weight 0
                cv2.addWeighted(plane, factor, plane, 0, offset, target, cv2.CV_32F)
    return torch.from_numpy(out)
