"""Class probabilities of videos, or of their windows, by a trained network.

A video is prepared as the pipeline prepares its clips: encoded anew at the model's short side, split into JPEGs if the
model reads frames, cut into the views of its test spec. So the numbers are those that `evaluate` would give.
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
from typing import Literal, NamedTuple

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
from ..kinetics.ffmpeg_process import TIMED_OUT, BadVideo
from ..kinetics.manifest import StoredClip
from ..kinetics.parts import in_order
from ..kinetics.transcode import Measures, lay_over, measure, shown_size, to_jpegs, transcode
from ..params import Params, load_params
from ..weights.checkpoints import TrainedModel, open_trained
from .overlay import margin_of, text_boxes
from .video_paths import check_windows, fault_of, shown

WINDOW_SECONDS = 10.0
"""Length of Kinetics' clips."""

Top = list[tuple[str, float]]
"""(class name, probability), the most probable first."""


@dataclass(frozen=True)
class Prediction:
    """The classes of a video, or of a window of it."""

    video: Path
    top: Top
    start_seconds: float = 0.0
    end_seconds: float | None = None
    """None: the end of the video."""
    note: str = ""
    """ffmpeg's warnings while it decoded."""
    fault: str = ""
    """A sentence on why `top` is empty."""


def open_predictor(  # eight parameters: the options of `actionzoo predict`, for calls from Python
    source: str | Path,
    *,
    model: str | None = None,
    classes: Path | None = None,
    num_clips: int | None = None,
    num_crops: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    params: Params | None = None,
    root: Path | None = None,
) -> "Predictor":
    """A Predictor; `source` names a checkpoint in one of the ways of weights/checkpoints.py.

        predictor = open_predictor("slowfast_r50_video_4x16x1_256e_kinetics400_rgb")
        predictor("clip.mp4")  ->  [("climbing a rope", 0.93), …]

    Where the checkpoint does not say them: `model` is the name of its model, `classes` a file with a class name per
    line. `num_clips` and `num_crops` are by default those of the test spec, `device` is runtime.device. Raises
    UserError.
    """
    for name, value in (("num_clips", num_clips), ("num_crops", num_crops)):
        if value is not None and value not in ((1, 3) if name == "num_crops" else range(1, 10_001)):
            raise UserError(f"{name} is {value}; a video has 1 to 10000 clips, and a clip 1 or 3 crops")
    params = params or load_params()
    if device:
        params = replace(params, runtime=replace(params.runtime, device=device))
    trained = open_trained(source, params=params, model=model, classes=classes, root=root)
    spec = trained.test_spec
    if num_clips is not None:
        spec = replace(spec, num_clips=num_clips)
    if num_crops is not None:
        spec = replace(spec, num_crops=1 if num_crops == 1 else 3)
    return Predictor(replace(trained, test_spec=spec), params)


class Predictor:
    """Predicts the classes of videos with one network."""

    def __init__(self, trained: TrainedModel, params: Params):
        self.trained, self.params = trained, params
        self.device = device_of(params.runtime)
        self._network = trained.network.to(self.device)
        self._to_input = ToInput(mean=trained.test_spec.mean, std=trained.test_spec.std, device=self.device)

    def __call__(self, video: str | Path, top: int = 5) -> Top:
        """The `top` most probable classes of a video. Raises UserError if it cannot be read."""
        (prediction,) = self.each([Path(video)], top=top)
        if prediction.fault:
            raise UserError(prediction.fault)
        return prediction.top

    def each(self, videos: Iterable[Path], *, top: int = 5) -> Iterator[Prediction]:
        """A prediction for each video, in order; the next ones are read while the network computes one."""
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

        Each window is predicted as if it had been cut out as a clip. `stride_seconds`, from one start to the next, is
        by default window_seconds. Memory does not grow with the length of the video. Raises UserError if the video
        cannot be read at all; a window without a picture has a `fault`.
        """
        check_windows(window_seconds, stride_seconds)
        video, stride_seconds = Path(video), window_seconds if stride_seconds is None else stride_seconds
        duration = self._measure(video).duration_seconds
        starts = _starts(duration, window_seconds, stride_seconds)
        return self._predict((_Piece(video, start, min(start + window_seconds, duration)) for start in starts), top)

    def draw(self, predictions: Sequence[Prediction], out: Path) -> None:
        """Write a copy of the predictions' video as mp4 with the most probable classes drawn on it: at any time those
        of the window whose middle is nearest. The file appears whole or not at all. Raises UserError."""
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
            # encoding it at full size may be 20 times slower than playing it
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
            raise UserError(f"the {top} most probable classes were requested; request 1 or more")
        return self._predict_all(pieces, top)

    def _predict_all(self, pieces: Iterable["_Piece"], top: int) -> Iterator[Prediction]:
        """Pieces are prepared ahead, on disk; as many as fill runtime.max_views go through the network together."""
        jobs, most = self.params.runtime.num_jobs, self.params.runtime.max_views
        with tempfile.TemporaryDirectory(prefix="actionzoo-") as name:
            tasks = (
                (piece, partial(self._prepare, piece, Path(name) / str(number))) for number, piece in enumerate(pieces)
            )
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                try:
                    group: list[_Ready] = []
                    for piece, prepared in in_order(tasks, pool, ahead=jobs):
                        assert prepared is not None  # each task is a function
                        group.append((piece, *self._views(piece, prepared)))
                        if sum(len(views) for _, views, _ in group if not isinstance(views, str)) >= most:
                            yield from self._predict_group(group, top)
                            group = []
                    yield from self._predict_group(group, top)
                finally:
                    pool.shutdown(cancel_futures=True)

    def _prepare(self, piece: "_Piece", folder: Path) -> "_Prepared | str":
        """The piece as the pipeline stores its clips, in a folder of its own; or a sentence why it cannot be read."""
        video, spec, limit = piece.video, self.trained.test_spec, self.params.runtime.clip_timeout_seconds
        if fault := fault_of(video):
            return fault
        span = None if piece.end_seconds is None else (piece.start_seconds, piece.end_seconds - piece.start_seconds)
        form = folder / spec.form
        form.mkdir(parents=True)
        try:
            made = transcode(
                video,
                short_side=spec.short_side,
                encode=self.params.prepare.encode,
                timeout_seconds=limit,
                scratch=folder,
                span=span,
            )
            if spec.form == "videos":
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
        clip = StoredClip(
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
        # decoders warn where a window begins inside a video, which is no fault
        return _Prepared(form, clip, "" if span else made.damage)

    def _views(self, piece: "_Piece", prepared: "_Prepared | str") -> tuple[list[View] | str, str]:
        """All views of a piece, or a sentence on why there are none; and ffmpeg's warnings."""
        if isinstance(prepared, str):
            return prepared, ""
        spec = self.trained.test_spec
        clips = ViewClips(prepared.form, [prepared.clip], spec)
        slot = np.empty(clips.slot_bytes, np.uint8)
        sample = clips((0, 0), slot)
        for path in sorted(prepared.form.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if sample.reason:
            return _sentence(piece.video, sample.reason), ""
        footage = Footage(torch.from_numpy(slot[: math.prod(sample.shape)].reshape(sample.shape)))
        views = [
            View(footage, indices, box, spec.crop_size) for box in sample.boxes for indices in sample.frame_indices
        ]
        return views, prepared.damage

    @torch.inference_mode()
    def _predict_group(self, group: list["_Ready"], top: int) -> list[Prediction]:
        spec = self.trained.test_spec
        views = [view for _, of, _ in group if not isinstance(of, str) for view in of]
        most = self.params.runtime.max_views
        parts = [views[start : start + most] for start in range(0, len(views), most)]
        logits = [self._network(self._to_input(part)).float().cpu() for part in parts]
        num_views = spec.num_clips * spec.num_crops
        scores = iter(average_views(torch.cat(logits), num_views, spec.average_clips) if logits else ())
        return [
            Prediction(piece.video, [], piece.start_seconds, piece.end_seconds, fault=of)
            if isinstance(of, str)
            else Prediction(piece.video, self._top(next(scores), top), piece.start_seconds, piece.end_seconds, note)
            for piece, of, note in group
        ]

    def _top(self, scores: Tensor, top: int) -> Top:
        probabilities = scores.softmax(dim=0) if self.trained.test_spec.average_clips == "score" else scores
        values, labels = probabilities.topk(min(top, len(probabilities)))
        return [
            (self.trained.classes[label], value) for label, value in zip(labels.tolist(), values.tolist(), strict=True)
        ]

    def _sampling(self) -> dict[str, int]:
        spec = self.trained.test_spec
        return {
            "clip_len": spec.clip_len,
            "frame_interval": spec.frame_interval,
            "num_clips": spec.num_clips,
        }


class _Piece(NamedTuple):
    """A video, or a window of it."""

    video: Path
    start_seconds: float = 0.0
    end_seconds: float | None = None
    """None: the whole video."""


class _Prepared(NamedTuple):
    form: Path
    """Folder of the prepared data, videos or frames by its name."""
    clip: StoredClip
    damage: str
    """ffmpeg's warnings; '' for none."""


_Ready = tuple[_Piece, list[View] | str, str]
"""A piece, its views or why there are none, and ffmpeg's warnings."""


def _starts(duration: float, window: float, stride: float) -> list[float]:
    """Start of each window. The last one has full length, too, unless the video is shorter:

    duration 25, window 10, stride 10  ->  0 10 15
    """
    last = max(duration - window, 0)
    # a window that would end within a twentieth of its length before the last one's end is left out
    return [*np.arange(0, last - 0.05 * window, stride).tolist(), last] if last else [0.0]


def _sentence(video: Path, reason: str, start_seconds: float | None = None) -> str:
    where = "" if start_seconds is None else f" from {start_seconds:.1f} s on"
    remedy = ""
    if reason.startswith(TIMED_OUT):
        remedy = "; predict it in windows (--window 10), or raise runtime.clip_timeout_seconds"
    return f"{shown(video)} gives no picture{where}: {reason}{remedy}"


def prediction_lines(prediction: Prediction) -> list[str]:
    """The lines that a prediction is shown as, on a terminal and on a drawn copy."""
    times = [] if prediction.end_seconds is None else [times_text(prediction)]
    if prediction.fault:
        return [*times, prediction.fault]
    return [*times, *(f"{100 * value:5.1f} %  {name}" for name, value in prediction.top)]


def times_text(prediction: Prediction) -> str:
    """The window's start and end: `0.0 – 10.0 s`."""
    return f"{prediction.start_seconds:.1f} – {prediction.end_seconds:.1f} s"
