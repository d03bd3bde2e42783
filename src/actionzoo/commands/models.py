"""Names of models as people type them: listed, completed, and resolved from any part that fits one model alone."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..params import Params

MAX_DEPTH = 40


def read_model_names() -> list[str]:
    """Names of all models, in the order of params.yaml.

    Parses the YAML but does not judge the values, in a tenth of the time that load_params needs. Where the file is not
    in the working directory, or has anything unusual, load_params reads it, and raises UserError if it is broken.
    """
    from ..files.text import read_text
    from ..files.yaml_files import MAX_BYTES

    path = Path("params.yaml")
    if path.is_file() and (names := _keys_of_recipes(read_text(path, "see that it can be read", MAX_BYTES))):
        return names

    from ..params import load_params

    return load_params().models()


def _keys_of_recipes(text: str) -> list[str]:
    """Keys of the section `recipes`; [] for anything but plain, well-formed YAML with sound names."""
    import yaml

    from ..names import is_name

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    names: list[str] = []
    section = ""
    counts = [0]  # of the nodes seen so far in each open collection; in a mapping every other one is a key
    try:
        for event in yaml.parse(text, Loader=loader):
            match event:
                case yaml.AliasEvent():
                    return []
                case yaml.ScalarEvent() if counts[-1] % 2 == 0 and len(counts) == 2:
                    section = event.value
                case yaml.ScalarEvent() if counts[-1] % 2 == 0 and len(counts) == 3 and section == "recipes":
                    names.append(event.value)
                case yaml.SequenceStartEvent() if len(counts) == 1 or (section == "recipes" and len(counts) == 2):
                    return []
            if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
                counts[-1] += 1
            if isinstance(event, yaml.CollectionStartEvent):
                counts.append(0)
            if isinstance(event, yaml.CollectionEndEvent):
                counts.pop()
            if len(counts) > MAX_DEPTH:
                return []
    except (yaml.YAMLError, ValueError):
        return []
    return names if len(names) == len(set(names)) and all(map(is_name, names)) else []


def complete_models(incomplete: str) -> list[str]:
    """Names of models for the shell, those that begin with `incomplete`; none where params.yaml cannot be read."""
    try:
        names = read_model_names()
    except Exception:  # a shell that completes a word has no place for an error
        return []
    return [name for name in names if name.startswith(incomplete)]


MODEL_HELP = "name of a model, or a part of it that no other has"

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", parser=str, help=MODEL_HELP, autocompletion=complete_models, show_default=False),
]


def resolve(params: "Params", model: str) -> str:
    """The full name of the model that `model` is a part of, told on stderr if it was not given in full.

    Raises UserError if no model has the part, or several have it.
    """
    name = params.resolve(model)
    if name != model and "WORLD_SIZE" not in os.environ:  # under torchrun, the first process has told it
        print(f"model: {name}", file=sys.stderr)
    return name


def resolve_checkpoint(params: "Params", checkpoint: str) -> str:
    """`checkpoint`, or the full name of the model that it is a part of.

    A path or an address stays as it is, and so does a word that no model's name has: opening it says what it may be.
    """
    is_place = "/" in checkpoint or "." in checkpoint or os.path.lexists(checkpoint)
    is_part = any(checkpoint.lower() in name.lower() for name in params.recipes)
    return resolve(params, checkpoint) if is_part and not is_place else checkpoint
