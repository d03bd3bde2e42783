"""What a deployment's form offers, and what its values mean: models, data set, what to do, devices.

The page of Prefect shows a parameter as its JSON schema says: an enum becomes a menu. The server checks a value against
the same schema before it makes a flow run. Both know the models and data sets that params.yaml had when the deployment
was made: `prefect deploy --all` makes them anew, and `flows.local` does so by itself.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from actionzoo.errors import UserError
from actionzoo.files.yaml_files import read_yaml
from actionzoo.names import did_you_mean, is_name
from actionzoo.params import Params
from flows.cluster import ADDRESS, LOCAL

PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"


def listed(section: str) -> list[str]:
    """Names in a section of params.yaml, `recipes` or `datasets`; none if it cannot be read: a flow run says why."""
    try:
        found = read_yaml(PARAMS, "").get(section)
    except UserError:
        return []
    return [name for name in found if is_name(name)] if isinstance(found, dict) else []


def _schema_of_models(models: Sequence[str]) -> dict[str, Any]:
    """A menu that takes several names, or names as people type them.

    A typed word is a pattern, or consists of words of the names; else the server refuses it and lists the names.
    """
    about = "Models to build; none: all. To type: a name, a part that no other name has (slowfast_r50_video), or a "
    about += "pattern (slowfast_*)."
    pattern = "^[A-Za-z0-9._?*-]*[?*][A-Za-z0-9._?*-]*$"
    words = "|".join(dict.fromkeys(re.escape(word) for name in models for word in name.split("_")))
    # no "type" beside this enum: of both errors of an unknown name, the server shows the other, which lists the names
    typed = {
        "type": "string",
        "if": {"pattern": rf"{pattern}|^(?:{words})(?:_(?:{words}))*$"},
        "else": {"enum": list(models)},
    }
    if not models:
        return {"type": "array", "items": {"type": "string"}, "description": about}
    return {
        "anyOf": [
            {"title": "choose", "type": "array", "items": {"type": "string", "enum": list(models)}},
            {"title": "type names or patterns", "type": "array", "items": typed},
        ],
        "description": about,
    }


def _optional(unset: str, given: str, schema: dict[str, Any], about: str) -> dict[str, Any]:
    """Either nothing, on a button that says what it means, or a value."""
    return {"anyOf": [{"title": unset, "type": "null"}, {"title": given, **schema}], "description": about}


Models = Annotated[Sequence[str], WithJsonSchema(_schema_of_models(listed("recipes")))]

DataSet = Annotated[
    str | None,
    WithJsonSchema(
        _optional(
            "as in params.yaml",
            "choose",
            {"type": "string", "enum": found} if (found := listed("datasets")) else {"type": "string"},
            "Data set to build. Another than params.yaml names is written into it (data.name) and stays; the run waits "
            "for those that build the present one.",
        )
    ),
]

Step = Literal["prepare", "train", "evaluate", "benchmark", "report"]
STEPS: tuple[Step, ...] = ("prepare", "train", "evaluate", "benchmark", "report")

What = Annotated[
    Sequence[Step],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "enum": list(STEPS)},
            "description": "What to do for the models. Nothing chosen: everything, and the report if all models are "
            "meant.",
        }
    ),
]

Force = Annotated[
    bool,
    WithJsonSchema(
        {
            "type": "boolean",
            "description": "Build what is asked for (not what it needs) even if it is up to date.",
        }
    ),
]

DryRun = Annotated[
    bool, WithJsonSchema({"type": "boolean", "description": "Say what would be built, and start nothing."})
]

Gpus = Annotated[
    Sequence[str] | None,
    WithJsonSchema(
        _optional(
            "all",
            "these (an empty list: none)",
            {
                "type": "array",
                "items": {"type": "string", "pattern": "^(?:[0-9]{1,4}|GPU-[0-9A-Fa-f-]+|MIG-[0-9A-Za-z/-]+)$"},
            },
            "GPUs to use, as CUDA_VISIBLE_DEVICES names them: 0, GPU-8f..., MIG-...",
        )
    ),
]

CpuSlots = Annotated[
    int,
    Field(ge=1),
    WithJsonSchema(
        {
            "type": "integer",
            "minimum": 1,
            "description": "Stages without a GPU that run at once; each of them uses several processes.",
        }
    ),
]

Dask = Annotated[
    str | None,
    WithJsonSchema(
        _optional(
            "none",
            "address",
            {"type": "string", "pattern": f"^(?:{LOCAL}|{ADDRESS.pattern})$"},
            "Dask scheduler whose workers prepare the data, as in tcp://10.0.0.1:8786, or `local`: workers on this "
            "machine. None: the stages prepare the data themselves.",
        )
    ),
]


OnMachines = Annotated[
    bool,
    WithJsonSchema(
        {
            "type": "boolean",
            "description": "Give each model to the next machine that has a free worker (python -m flows.worker), as a "
            "flow run of its own. The machines share what they build through DVC's default remote.",
        }
    ),
]

Nodes = Annotated[
    int,
    Field(ge=1),
    WithJsonSchema(
        {
            "type": "integer",
            "minimum": 1,
            "description": "On machines: how many of them train each model together.",
        }
    ),
]


def chosen_models(params: Params, words: Iterable[str]) -> tuple[str, ...]:
    """The models that `words` name, in the order of params.yaml; all if there are no words.

    A word is a name, a part that no other name has, or a pattern with * and ?, in upper or lower case. Raises
    UserError.
    """
    found: set[str] = set()
    for word in words:
        if not {*"*?"} & {*word}:
            found.add(params.resolve(word))
        elif fitting := [name for name in params.recipes if fnmatchcase(name.lower(), word.lower())]:
            found.update(fitting)
        else:
            words_of_names = dict.fromkeys(part for name in params.recipes for part in name.split("_"))
            meant = did_you_mean(word.strip("*?_"), words_of_names) or "; `actionzoo models` lists all"
            raise UserError(f"no model fits the pattern {word}{meant}")
    return tuple(name for name in params.recipes if name in found or not found)


def targets_of(params: Params, models: Sequence[str], steps: Collection[Step]) -> tuple[str, ...]:
    """The targets in dvc.yaml that the steps are for these models; no steps mean all that these models can have.

    The report is of all models: raises UserError if it is a step for some.
    """
    every = len(models) == len(params.recipes)
    steps = steps or (STEPS if every else STEPS[:-1])
    if "report" in steps and not every:
        raise UserError(
            f"the report is made of the results of all {len(params.recipes)} models, and this run builds {len(models)} "
            "of them; leave `models` empty to build all, or take `report` out of `what`"
        )
    targets: list[str] = []
    for step in (step for step in STEPS if step in steps):
        if step == "prepare":
            clips = [params.recipes[model].clips for model in models]
            stages = {"videos": "resize", "frames": "frames"}
            targets += dict.fromkeys(f"{stages[each.form]}@{each.short_side}" for each in clips)
        elif step == "report":
            targets.append(step)
        else:
            targets += [step] if every else [f"{step}@{model}" for model in models]
    return tuple(targets)
