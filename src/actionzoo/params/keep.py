"""Edit params.yaml in the layout that DVC gives it, so that other lines stay as they are."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..errors import UserError
from ..files.atomic import atomic_write
from .read import Params, load_params


def keep_models(params: Params, models: Collection[str]) -> Params:
    """Narrow params.yaml to some of its models, so that DVC's graph is about these alone; returns the new values.

    Deletes the recipes of the other models, and what data sets say of these. Raises UserError for an unknown model, and
    leaves the file as it was.
    """
    for model in models:
        params.check_model(model)
        needed = params.recipes[model].init.weights
        if needed in params.recipes and needed not in models:
            raise UserError(f"{model} starts from the published weights of {needed} (init.weights); keep that one, too")
    content = _YAML.load(params.path.read_text(encoding="utf-8"))
    families = {params.recipes[model].model.family for model in models}
    for model in params.recipes.keys() - set(models):
        del content["recipes"][model]
    for dataset in content["datasets"].values():
        overrides, demo = dataset.get("overrides") or {}, dataset.get("demo_recipes")
        for key in [key for key in overrides if key not in models and key not in families]:
            del overrides[key]
        if demo:
            demo[:] = [model for model in demo if model in models]
    _write(params.path, content)
    return load_params(params.path)


def choose_dataset(path: Path, name: str) -> None:
    """Set data.name in the params.yaml at `path`, as `dvc exp run -S data.name=...` does. The file has been judged."""
    content = _YAML.load(path.read_text(encoding="utf-8"))
    content["data"]["name"] = name
    _write(path, content)


def _write(path: Path, content: Any) -> None:
    text = io.StringIO()
    _YAML.dump(content, text)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


_YAML = YAML()  # in its own layout, as DVC uses it
