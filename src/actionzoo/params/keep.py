"""Narrow params.yaml to some of its models, so that DVC's graph is about these alone."""

import io
from collections.abc import Collection

from ruamel.yaml import YAML

from ..errors import UserError
from ..files.atomic import atomic_write
from .read import Params, load_params


def keep_models(params: Params, models: Collection[str]) -> Params:
    """Delete the recipes of all other models from params.yaml, and what data sets say of these; returns the new values.

    The other lines stay as they are, as far as they are laid out as DVC lays them out. Raises UserError for an unknown
    model, and leaves the file as it was.
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
    text = io.StringIO()
    _YAML.dump(content, text)
    with atomic_write(params.path) as file:
        file.write(text.getvalue().encode())
    return load_params(params.path)


_YAML = YAML()  # in its own layout, as DVC uses it
