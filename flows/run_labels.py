"""What a flow run says of itself on Prefect's page: its name, its tags, and what it waits for."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Pending, Running

from actionzoo.errors import UserError
from actionzoo.params import Params, load_params
from flows.choices import chosen_models

MAX_LETTERS = 120


def name_by_models(verb: str) -> str:
    """`train slowfast_r50_video_4x16x1_256e… · demo`; of several models, the first and how many more. For
    `flow_run_name`.

    The verb `zoo` gives way to the steps that were chosen.
    """
    given = flow_run.parameters
    words, data = given["models"], given["data"]
    try:
        params = load_params(Path("params.yaml"))
        shown, data = _shown(params, chosen_models(params, words), words), data or params.name
    except UserError:  # the flow run will fail with it
        shown = ", ".join(words)
    parts = [f"{', '.join(given.get('what', ())) or verb} {shown}", data]
    parts += [option.replace("_", " ") for option in ("force", "dry_run") if given[option]]
    return " · ".join(filter(None, parts))[:MAX_LETTERS]


def name_by_targets() -> str:
    """`evaluate@slowfast_r50_video_4x16x1_256e_kinetics400_rgb`, or the first of several targets and their number."""
    targets: list[str] = flow_run.parameters["targets"] or ["all stages"]
    return (targets[0] + (f" and {len(targets) - 1} more" if len(targets) > 1 else ""))[:MAX_LETTERS]


def show_waiting(cause: str) -> None:
    """Give the current flow run a pending state that says what it waits for."""
    get_run_logger().info(f"waits for {cause}")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Pending(name="Waiting", message=f"waits for {cause}"), force=True)


def show_begun(data: str, models: Iterable[str]) -> None:
    """Tag the current flow run with what it builds; it runs from now on."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        tags = [*run.tags, *([f"data:{data}"] if data else []), *(f"model:{model}" for model in models)]
        client.update_flow_run(run.id, tags=[*dict.fromkeys(tags)])
    show_running()


def show_running() -> None:
    """End the state of `show_waiting`, if the current flow run is in it."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        if run.state is not None and run.state.is_pending():
            client.set_flow_run_state(run.id, Running(), force=True)


def _shown(params: Params, models: Sequence[str], words: Sequence[str]) -> str:
    if len(models) == len(params.recipes) > 1:
        return f"all {len(models)} models"
    if len(models) > 1 and (patterns := ", ".join(word for word in words if {*"*?"} & {*word})):
        return f"{len(models)} models, {patterns}"
    return _short(params, models[0]) + (f" and {len(models) - 1} more" if len(models) > 1 else "")


def _short(params: Params, model: str) -> str:
    """The name without the words with which the names of all models end."""
    names = [name.split("_")[::-1] for name in params.recipes]
    shared = 0
    while len({tuple(name[: shared + 1]) for name in names}) == 1 and shared + 1 < min(map(len, names)):
        shared += 1
    return "_".join(model.split("_")[:-shared]) + "…" if shared and len(names) > 1 else model
