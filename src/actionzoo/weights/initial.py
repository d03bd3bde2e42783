"""The weights that a training starts from: a recipe's init.weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..params import Params
from ..process.progress import progress
from ..recipe import Model
from .download import fetch_weights, weights_here
from .published import PublishedFile, base_name, fetch_published, other_network, published_file

if TYPE_CHECKING:
    from torch import nn

    from .load import LoadReport


@dataclass(frozen=True)
class InitialWeights:
    model: str
    """The model that is trained."""
    dataset: str
    source: str
    """As the recipe has it: a file, a URL, or the name of a model."""
    is_model: bool
    """The source is the name of a model, and means its published file."""
    published: PublishedFile | None
    mirrors: Sequence[str]
    """Other addresses of a URL, tried in order."""

    def file_here(self, cache: Path) -> Path | None:
        """The file, if it is on this machine; `cache` is the folder of downloads. Nothing is downloaded."""
        if self.published:
            return weights_here(self.published.address, cache, is_published=True)
        return weights_here(self.source, cache, is_published=bool(self.mirrors))


def initial_weights(params: Params, model: str) -> InitialWeights | None:
    """What `model` starts from on the chosen data set; None for random weights."""
    source = params.recipe(model).init.weights
    if source is None:
        return None
    is_model = source in params.recipes
    published = published_file(params, source) if is_model else None
    return InitialWeights(model, params.name, source, is_model, published, params.mirrors.get(base_name(source), ()))


def check_initial_weights(initial: InitialWeights, section: Model) -> None:
    """Raises UserError if they cannot be those of the network that `section` describes. Nothing is fetched."""
    key = f"recipes.{initial.model}.init.weights"
    if not initial.is_model:
        return
    if initial.published is None:
        raise UserError(f"{key} is {initial.source}, which has no published weights; give a file or URL")
    if changes := other_network(initial.published, section):
        raise UserError(
            f"{key} is {initial.source}, whose published {initial.published.name} is of another network than "
            f"{initial.model} trains. To start from it, set "
            f"{', '.join(f'{key}: {value}' for key, value in changes.items())} in "
            f"datasets.{initial.dataset}.overrides.{initial.model}.model"
        )


def load_initial_weights(network: "nn.Module", initial: InitialWeights, cache: Path) -> "LoadReport":
    """Fetch them into the folder `cache` if they are not here yet, and load them. Raises UserError."""
    from .load import load_weights

    try:
        with progress("bytes") as on_progress:
            source: str | Path = initial.source
            if initial.published:
                source = fetch_published(initial.published, cache, on_progress=on_progress)
            elif initial.mirrors:
                source = fetch_weights(initial.source, cache, mirrors=initial.mirrors, on_progress=on_progress)
            return load_weights(network, source, cache=cache, on_progress=on_progress)
    except UserError as error:
        raise UserError(
            f"{initial.model} starts from recipes.{initial.model}.init.weights, which cannot be had: {error}\n"
            "Set that key to a file or URL that can, or to null to start from random weights"
        ) from None
