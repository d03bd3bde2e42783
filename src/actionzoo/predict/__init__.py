"""Trained networks in use: class probabilities of videos, drawn copies, exported files.

from actionzoo.predict import open_predictor
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Prediction, Predictor, open_predictor

__all__ = ["Prediction", "Predictor", "open_predictor"]


def __getattr__(name: str) -> Any:
    """Imports what needs torch, which takes seconds, on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import predictor

    return getattr(predictor, name)
