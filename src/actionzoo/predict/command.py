"""`actionzoo predict`: predictions of videos and folders as text, as JSON, or drawn on copies."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .predictor import WINDOW_SECONDS, Prediction, Predictor, prediction_lines
from .video_paths import PredictRequest, check_windows, find_targets, find_videos, shown


def predict_all(predictor: Predictor, request: PredictRequest) -> None:
    """Print the classes of the request's videos, as text or as one JSON object per line, and draw the copies.

    Each video that cannot be used is named with the reason; UserError at the end says how many there are.
    """
    check_windows(request.window_seconds, request.stride_seconds)
    paths, as_json = find_videos(request.videos), request.as_json
    targets = find_targets(paths, request.draw) if request.draw else {}
    num_faults = 0
    for path, predictions in _predictions(predictor, list(paths), request):
        done: list[Prediction] = []
        for prediction in predictions:
            done.append(prediction)
            if not as_json:
                print(_text(prediction, is_first=len(done) == 1), flush=True)
        usable = [prediction for prediction in done if not prediction.fault]
        drawn: Path | None = None
        fault = "" if usable else done[0].fault
        if path in targets and usable:
            try:
                predictor.draw(done, targets[path])
                drawn = targets[path]
            except UserError as error:
                fault = str(error)
            if not as_json:
                print(f"  {fault}" if drawn is None else f"  drawn: {shown(drawn)}", flush=True)
        if as_json:
            print(json.dumps(_plain(path, done, request.is_windowed, fault, drawn), ensure_ascii=False), flush=True)
        num_faults += bool(fault) or len(usable) < len(done)
    if num_faults:
        raise UserError(f"{num_faults} of {len(paths)} videos could not be used, or not all of them; see above")


def _predictions(
    predictor: Predictor, paths: list[Path], request: PredictRequest
) -> Iterator[tuple[Path, Iterable[Prediction]]]:
    """Each video with its prediction, or with those of its windows."""
    if not request.is_windowed:
        yield from ((prediction.video, [prediction]) for prediction in predictor.each(paths, top=request.top))
        return
    for path in paths:
        windows: Iterable[Prediction]
        try:
            windows = predictor.windows(
                path,
                window_seconds=WINDOW_SECONDS if request.window_seconds is None else request.window_seconds,
                stride_seconds=request.stride_seconds,
                top=request.top,
            )
        except UserError as error:
            windows = [Prediction(path, [], fault=str(error))]
        yield path, windows


def _text(prediction: Prediction, is_first: bool) -> str:
    title = [shown(prediction.video)] if is_first else []
    if prediction.note:
        title += [f"  decodes with faults: {prediction.note}"]
    return "\n".join([*title, *(f"  {line}" for line in prediction_lines(prediction))])


def _plain(
    path: Path, predictions: Sequence[Prediction], is_windowed: bool, fault: str, drawn: Path | None
) -> dict[str, Any]:
    """A video's JSON object."""

    def top(prediction: Prediction) -> list[dict[str, Any]]:
        return [{"class_name": name, "probability": value} for name, value in prediction.top]

    line: dict[str, Any] = {"video": shown(path)}
    if fault:
        line["error"] = fault
    if not is_windowed:
        line |= {"top": top(predictions[0])}
    elif predictions[0].end_seconds is not None:
        line["windows"] = [
            {"start_seconds": each.start_seconds, "end_seconds": each.end_seconds, "top": top(each)}
            | ({"error": each.fault} if each.fault else {})
            for each in predictions
        ]
    notes = [prediction.note for prediction in predictions if prediction.note]
    return line | ({"note": notes[0]} if notes else {}) | ({"drawn": shown(drawn)} if drawn else {})
