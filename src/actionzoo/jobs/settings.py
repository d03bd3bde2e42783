"""The settings stage: what the stages of the chosen data set depend on, taken out of params.yaml. No torch.

DVC compares keys of files, and params.yaml has no key for what one model takes from a data set: overrides stand there
by family and by model, of the data set itself and of the one in `overrides_of`. data/<dataset>/settings.yaml has one:

    source                      the data set's source, splits, parts and synthetic
    lists.<split>               its published list; null where there is none
    overrides.<model>.<section> the values that the data set replaces in the recipe
    benchmark.<model>           those of them that a benchmark depends on, of the sections init and optim

All keys are always there, because DVC refuses a dependency on a key that is missing.
"""

import typing
from pathlib import Path
from typing import Any

import yaml

from ..files.atomic import atomic_write
from ..params import Params
from ..recipe import Split, as_dict
from .adopt import save_links

BENCHMARKED = (("init", "frozen_stages"), ("optim", "videos_per_gpu"))
"""Sections and keys that a benchmark depends on, beside the sections that it depends on as a whole."""

_HEADER = "# What the stages of this data set depend on. stages/settings.py makes it of params.yaml; edit that file."


def settings(params: Params) -> str:
    """Write data/<dataset>/settings.yaml; returns the stage's closing line."""
    path, content = settings_path(params), settings_of(params)
    save_links(params.root, params.workspace)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with atomic_write(path) as file:
        file.write(f"{_HEADER}\n{text}".encode())
    count = sum(any(sections.values()) for sections in content["overrides"].values())
    return f"settings: {params.name} replaces values in {count} of {len(params.recipes)} recipes; {path}"


def settings_path(params: Params) -> Path:
    return params.folder("data") / "settings.yaml"


def settings_of(params: Params) -> dict[str, Any]:
    """The content of settings.yaml, plain values."""
    # As written: the value of ACTIONZOO_SOURCE belongs to a machine. In the file it would make finished work stale on
    # the next one, and DVC would keep its passwords.
    dataset = as_dict(params.datasets[params.name])
    overrides = {model: params.replaced(model) for model in params.recipes}
    return {
        "source": {key: dataset[key] for key in ("source", "splits", "parts", "synthetic")},
        "lists": {split: dataset["published_lists"].get(split) for split in typing.get_args(Split)},
        "overrides": overrides,
        "benchmark": {
            model: {key: sections[section][key] for section, key in BENCHMARKED if key in sections[section]}
            for model, sections in overrides.items()
        },
    }
