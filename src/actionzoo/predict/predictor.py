"""A trained network put to use: the classes of videos, and of what happens in them when.

A video goes the way that the pipeline's clips went: encoded anew at the row's short side, made into JPEGs where the row
reads frames, cut into the views of its test. So the numbers are those that `evaluate` would give.
"""

import concurrent.futures
import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..clips.dataset import ViewClips
from ..clips.inputs import Footage, ToInput, View
from ..clips.sampling import view_frames
from ..devices import device_of
from ..engine.views import average_views
from ..errors import UserError
from ..files.atomic import sync_folder
from ..kinetics.ffmpeg_process import TIMED_OUT
from ..kinetics.manifest import Clip
from ..kinetics.parts import in_order
from ..kinetics.transcode import BadVideo, Measures, lay_over, measure, shown_size, to_jpegs, transcode
from ..params import Params
from ..weights.checkpoints import Trained, open_trained
from ..zoo import project_params
from .overlay import margin_of, text_boxes
from .video_paths import check_windows, fault_of, shown

WINDOW_SECONDS = 10.0
"""How long Kinetics' clips are."""

Top = list[tuple[str, float]]
"""(class name, probability), the likeliest first."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of a video, or of a part of it."""

    video: Path
    top: Top
    start_seconds: float = 0.0
    end_seconds: float | None = None
    """None: to the end."""
    note: str = ""
    """What ffmpeg complained of while it decoded."""
    fault: str = ""
    """Why there is nothing in `top`: a sentence."""


def open_predictor(
    model: str | Path,
    *,
    row: str | None = None,
    classes: Path | None = None,
    num_clips: int | None = None,
    num_crops: int | None = None,
    device: str | None = None,
    params: Params | None = None,
    root: Path = Path(),
) -> "Predictor":
    """A function from videos to classes; `model` is whatever `trained.py` knows by a name.

        predictor = open_predictor("slowfast_r50_video_4x16x1_256e_kinetics400_rgb")
        predictor("clip.mp4")  ->  [("climbing a rope", 0.93), …]

    `num_clips` and `num_crops` are those of the row's test if None, `device` (cpu or cuda) is runtime.device. Raises
    UserError.
    """
    for name, value in (("num_clips", num_clips), ("num_crops", num_crops)):
        if value is not None and value not in ((1, 3) if name == "num_crops" else range(1, 10_001)):
            raise UserError(f"{name} is {value}; a video has 1 to 10000 clips, and a clip 1 or 3 crops")
    params = params or project_params()
    if device:
        params = replace(params, runtime=replace(params.runtime, device=device))
    trained = open_trained(model, params=params, row=row, classes=classes, root=root)
    views = {"num_clips": num_clips, "num_crops": num_crops}
    viewing = replace(trained.viewing, **{key: value for key, value in views.items() if value is not None})
    return Predictor(replace(trained, viewing=viewing), params)


class Predictor:
    def __init__(self, trained: Trained, params: Params):
        self.trained, self.params = trained, params
        self.device = device_of(params.runtime)
        self._network = trained.network.to(self.device)
        self._to_input = ToInput(mean=trained.viewing.mean, std=trained.viewing.std, device=self.device)

    def __call__(self, video: str | Path, top: int = 5) -> Top:
        """The likeliest classes of a video. Raises UserError if it cannot be read."""
        (prediction,) = self.each([Path(video)], top=top)
        if prediction.fault:
            raise UserError(prediction.fault)
        return prediction.top

    def each(self, videos: Iterable[Path], *, top: int = 5) -> Iterator[Prediction]:
        """One prediction for each video, in order; while one is in the network the next ones are read."""
        return self._predict((_Piece(video) for video in videos), top)

    def windows(
        self,
        video: str | Path,
        *,
        window_seconds: float = WINDOW_SECONDS,
        stride_seconds: float | None = None,
        top: int = 5,
    ) -> Iterator[Prediction]:
        """A prediction for each window, from second 0 on; the last one is moved back to end with the video.

        A window is predicted as if it had been cut out as a clip of its own. Only some of them are in memory at a time,
        however long the video is. Without a stride, windows lie side by side. Raises UserError if the video cannot be
        read at all; a window without a picture has a fault.
        """
        check_windows(window_seconds, stride_seconds)
        video, stride_seconds = Path(video), window_seconds if stride_seconds is None else stride_seconds
        duration = self._measure(video).duration_seconds
        starts = _starts(duration, window_seconds, stride_seconds)
        return self._predict((_Piece(video, start, min(start + window_seconds, duration)) for start in starts), top)

    def draw(self, predictions: Sequence[Prediction], out: Path) -> None:
        """A copy of the predictions' video, as mp4, with the likeliest classes on it: always those of the window
        whose middle is nearest. Written whole or not at all. Raises UserError."""
        video, limit = predictions[0].video, self.params.runtime.clip_timeout_seconds
        if out.exists() and out.samefile(video):
            raise UserError(f"{out} is the video itself; give --draw another name")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial")
        middles = [(each.start_seconds + (each.end_seconds or 0)) / 2 for each in predictions]
        untils = [*((one + two) / 2 for one, two in itertools.pairwise(middles)), math.inf]
        try:
            height, width = shown_size(video, timeout_seconds=limit)
            boxes = text_boxes([prediction_lines(each) for each in predictions], height, width)
            margin = margin_of(height, width)
            # encoding all of it at full size: at a twentieth of its speed, if need be
            patience = limit + 20 * self._measure(video).duration_seconds
            lay_over(
                video,
                list(zip(boxes, untils, strict=True)),
                partial,
                left=margin,
                top=margin,
                timeout_seconds=patience,
            )
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, out)
        except BadVideo as error:
            raise UserError(f"{shown(video)} could not be drawn on: {error}") from None
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(out.parent)

    def _measure(self, video: Path) -> Measures:
        if fault := fault_of(video):
            raise UserError(fault)
        try:
            return measure(video, timeout_seconds=self.params.runtime.clip_timeout_seconds)
        except BadVideo as error:
            raise UserError(_sentence(video, str(error))) from None

    def _predict(self, pieces: Iterable["_Piece"], top: int) -> Iterator[Prediction]:
        if top < 1:
            raise UserError(f"the {top} likeliest classes are asked for; ask for 1 or more")
        return self._through_all(pieces, top)

    def _through_all(self, pieces: Iterable["_Piece"], top: int) -> Iterator[Prediction]:
        """Pieces are read ahead, on disk, and go through the network together as far as they fill it."""
        jobs, most = self.params.runtime.num_jobs, self.params.runtime.max_views
        with tempfile.TemporaryDirectory(prefix="actionzoo-") as name:
            tasks = (
                (piece, partial(self._prepare, piece, Path(name) / str(number))) for number, piece in enumerate(pieces)
            )
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                try:
                    group = []
                    for piece, prepared in in_order(tasks, pool, ahead=jobs):
                        group.append((piece, *self._views(piece, prepared)))
                        if sum(len(views) for _, views, _ in group if not isinstance(views, str)) >= most:
                            yield from self._through(group, top)
                            group = []
                    yield from self._through(group, top)
                finally:
                    pool.shutdown(cancel_futures=True)

    def _prepare(self, piece: "_Piece", folder: Path) -> "_Prepared | str":
        """The piece as the pipeline stores its clips, in a folder of its own; or why it cannot be had."""
        video, viewing, limit = piece.video, self.trained.viewing, self.params.runtime.clip_timeout_seconds
        if fault := fault_of(video):
            return fault
        span = None if piece.end_seconds is None else (piece.start_seconds, piece.end_seconds - piece.start_seconds)
        form = folder / viewing.form
        form.mkdir(parents=True)
        try:
            made = transcode(
                video,
                short_side=viewing.short_side,
                encode=self.params.prepare.encode,
                timeout_seconds=limit,
                scratch=folder,
                span=span,
            )
            if viewing.form == "videos":
                stored = "clip.mp4"
                (form / stored).write_bytes(made.data)
            else:
                stored = "clip"
                (form / stored).mkdir()
                wanted = np.unique(view_frames(made.num_frames, **self._sampling())).tolist()
                qscale = self.params.prepare.jpeg.qscale
                jpegs = to_jpegs(made.data, qscale=qscale, timeout_seconds=limit, scratch=folder, wanted=wanted).frames
                for number, jpeg in zip(wanted, jpegs, strict=True):
                    (form / stored / f"img_{number + 1:05d}.jpg").write_bytes(jpeg)
        except BadVideo as error:
            return _sentence(video, str(error), piece.start_seconds if span else None)
        clip = Clip(
            video_id=video.name,
            split="test",
            label=-1,
            class_name="",
            state="ok",
            shard=stored,
            offset=0,
            size=len(made.data),
            num_frames=made.num_frames,
            width=made.width,
            height=made.height,
        )
        # where a part begins in the midst of a video, decoders complain of what is no fault
        return _Prepared(form, clip, "" if span else made.damage)

    def _views(self, piece: "_Piece", prepared: "_Prepared | str") -> tuple[list[View] | str, str]:
        """All views of a piece, or why there are none; and what there was to complain of."""
        if isinstance(prepared, str):
            return prepared, ""
        viewing = self.trained.viewing
        look = ViewClips(prepared.form, [prepared.clip], viewing)
        slot = np.empty(look.slot_bytes, np.uint8)
        sample = look((0, 0), slot)
        for path in sorted(prepared.form.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if sample.reason:
            return _sentence(piece.video, sample.reason), ""
        footage = Footage(torch.from_numpy(slot[: math.prod(sample.shape)].reshape(sample.shape)))
        views = [
            View(footage, indices, box, viewing.crop_size) for box in sample.boxes for indices in sample.frame_indices
        ]
        return views, prepared.damage

    @torch.inference_mode()
    def _through(self, group: list[tuple["_Piece", list[View] | str, str]], top: int) -> list[Prediction]:
        viewing = self.trained.viewing
        views = [view for _, of, _ in group if not isinstance(of, str) for view in of]
        most = self.params.runtime.max_views
        parts = [views[start : start + most] for start in range(0, len(views), most)]
        logits = [self._network(self._to_input(part)).float().cpu() for part in parts]
        num_views = viewing.num_clips * viewing.num_crops
        scores = iter(average_views(torch.cat(logits), num_views, viewing.average_clips) if logits else ())
        return [
            Prediction(piece.video, [], piece.start_seconds, piece.end_seconds, fault=of)
            if isinstance(of, str)
            else Prediction(piece.video, self._top(next(scores), top), piece.start_seconds, piece.end_seconds, note)
            for piece, of, note in group
        ]

    def _top(self, scores: Tensor, top: int) -> Top:
        probabilities = scores.softmax(dim=0) if self.trained.viewing.average_clips == "score" else scores
        values, labels = probabilities.topk(min(top, len(probabilities)))
        return [
            (self.trained.classes[label], value) for label, value in zip(labels.tolist(), values.tolist(), strict=True)
        ]

    def _sampling(self) -> dict[str, int]:
        viewing = self.trained.viewing
        return {
            "clip_len": viewing.clip_len,
            "frame_interval": viewing.frame_interval,
            "num_clips": viewing.num_clips,
        }


class _Piece(NamedTuple):
    video: Path
    start_seconds: float = 0.0
    end_seconds: float | None = None
    """None for all of the video."""


class _Prepared(NamedTuple):
    form: Path
    clip: Clip
    damage: str


def _starts(duration: float, window: float, stride: float) -> list[float]:
    """Where windows begin. The last one is whole, too, as long as the video is:

    duration 25, window 10, stride 10  ->  0 10 15
    """
    last = max(duration - window, 0)
    # where the one before it would end within a twentieth of the last one's end, the last one alone
    return [*np.arange(0, last - 0.05 * window, stride).tolist(), last] if last else [0.0]


def _sentence(video: Path, reason: str, start_seconds: float | None = None) -> str:
    where = "" if start_seconds is None else f" from {start_seconds:.1f} s on"
    remedy = ""
    if reason.startswith(TIMED_OUT):
        remedy = "; predict it in windows (--window 10), or raise runtime.clip_timeout_seconds"
    return f"{shown(video)} gives no picture{where}: {reason}{remedy}"


def prediction_lines(prediction: Prediction) -> list[str]:
    """For people: probabilities first, so that they stand below each other."""
    times = [] if prediction.end_seconds is None else [times_text(prediction)]
    if prediction.fault:
        return [*times, prediction.fault]
    return [*times, *(f"{100 * value:5.1f} %  {name}" for name, value in prediction.top)]


def times_text(prediction: Prediction) -> str:
    return f"{prediction.start_seconds:.1f} – {prediction.end_seconds:.1f} s"
