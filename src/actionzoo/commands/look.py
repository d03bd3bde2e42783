"""What there is: models, recipes, the table, the MLflow UI."""

import json
import os
import re
import socket
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import whole
from .models import MODEL_HELP, complete_models, read_model_names, resolve
from .usage import Command

if TYPE_CHECKING:
    from ..params import Params

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Look")


@command(epilog="example: actionzoo models")
def models() -> None:
    """List the models of the zoo."""
    print("\n".join(read_model_names()))


@command(
    epilog="""\
example: actionzoo params
example: actionzoo params slowfast_r50_video
example: actionzoo params slowfast_r50_video slowfast_r50_8x8x1"""
)
def params(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", parser=str, autocompletion=complete_models, help=f"{MODEL_HELP}; print its recipe"
        ),
    ] = None,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="OTHER", parser=str, autocompletion=complete_models, help="print what differs in this one's recipe"
        ),
    ] = None,
) -> None:
    """Check params.yaml, print a recipe, or compare two.

    A recipe is printed as it is used: with the overrides of the chosen data set.
    """
    from ..params import load_params
    from ..recipe import as_dict, compare

    params = load_params()
    if model is None:
        print(
            f"{params.path}: {len(params.recipes)} models, {len(params.datasets)} data sets, data.name is {params.name}"
        )
    elif other is None:
        name = resolve(params, model)
        print(json.dumps(as_dict(params.recipe(name)), indent=2))
        for override in params.overrides(name):
            print(f"# datasets.{params.name} overrides {override}")
    else:
        first, second = resolve(params, model), resolve(params, other)
        lines = compare(params.recipe(first), params.recipe(second))
        print("\n".join(lines) if lines else f"{first} and {second} have equal recipes on {params.name}")


@command(epilog="example: actionzoo keep slowfast_r50_video ircsn_bnfrozen_r50")
def keep(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", parser=str, autocompletion=complete_models, help=f"{MODEL_HELP}; to keep"),
    ],
) -> None:
    """Delete all other models' recipes from params.yaml.

    The graph is then about these models. DVC expects that all of a graph is built: otherwise `dvc pull`, `dvc checkout`
    and `dvc exp apply` warn about every model that is not, and end with an error. Git has the deleted recipes, DVC's
    cache the results: `git checkout params.yaml`, then `dvc checkout`.
    """
    from ..params import load_params
    from ..params.keep import keep_models
    from ..run_files import delete_tables

    params = load_params()
    kept = keep_models(params, [resolve(params, model) for model in models])
    print(f"{kept.path}: {len(kept.recipes)} of {len(params.recipes)} models kept: {', '.join(kept.recipes)}")
    if built := delete_tables(params.root, params.name, kept.recipes):
        print(f"tables in metrics/ and plots/ deleted, which DVC's cache keeps: {', '.join(built)}")


@command(epilog="example: actionzoo built")
def built() -> None:
    """List the stages that dvc.lock has results of.

    For DVC: `dvc pull --run-cache $(actionzoo built)`. Without names of stages, `dvc pull` warns about every model that
    was never built, and ends with status 1.
    """
    from ..errors import UserError
    from ..files.yaml_files import read_yaml
    from ..params import load_params

    params = load_params()
    path = params.root / "dvc.lock"
    if not path.is_file():
        raise UserError(f"{path} is not there: no stage was built. `dvc repro` writes it; a colleague's comes with git")
    stages = read_yaml(path, "restore it: git checkout dvc.lock").get("stages")
    for name, entry in stages.items() if isinstance(stages, dict) else ():
        model, outs = name.partition("@")[2], entry.get("outs") if isinstance(entry, dict) else None
        if not isinstance(outs, list) or not (model.isdecimal() or not model or model in params.recipes):
            continue
        if all(isinstance(out, dict) and params.name in str(out.get("path")).split("/") for out in outs):
            print(name)


@command(epilog="example: actionzoo table")
def table() -> None:
    """Print the zoo table, with the published numbers."""
    from rich.console import Console

    from ..params import load_params
    from ..report.results import model_entries, read_report
    from ..report.tables import terminal_table

    params = load_params()
    entries, out = model_entries(params), params.folder("report")
    report = read_report(dataset=params.name, entries=entries, root=params.root, out=out)
    Console().print(terminal_table(report))


@command(epilog="example: actionzoo ui --port 5001")
def ui(
    port: Annotated[int | None, typer.Option(metavar="N", parser=whole(1, 65535), help="TCP port on 127.0.0.1")] = None,
) -> None:
    """Open the MLflow UI, for this machine only.

    Trainings whose process is gone are marked as failed first. The port is 5000 if none is given.
    """
    from ..errors import UserError
    from ..params import load_params
    from ..tracking.pages import UI_PORT, ui_address
    from ..tracking.record import sync_unfinished
    from ..tracking.store import is_server, pages_address, runs_address, ui_command

    params, port = load_params(), port or UI_PORT
    if not is_server(params.root):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise UserError(
                    f"port {port} on 127.0.0.1 is in use; `actionzoo ui --port {port + 1}` takes another"
                ) from None
    sync_unfinished(params.root, params.runtime.checkpoints)
    server = pages_address(params.root) if is_server(params.root) else ui_address(port)
    _link_report_to_runs(params, server)
    line, address = ui_command(port=port), runs_address(params.name, params.root, server)
    print(f"{line}\nin a few seconds, open {address}\nCtrl-C ends it", flush=True)
    # the shell sets the variables: as arguments of `env`, a password would show in the list of processes
    os.execv("/bin/sh", ["/bin/sh", "-c", re.sub(r"^((?:\w+=\S+ )*)", r"\1exec ", line)])


def _link_report_to_runs(params: "Params", server: str) -> None:
    """Let the report's links lead to the pages of `server`, if there is a report."""
    from ..report.run_links import write_run_links

    if (params.folder("report") / "zoo.html").is_file():
        write_run_links(params, params.root, server=server)


@command(epilog="example: actionzoo sync")
def sync() -> None:
    """Fill MLflow from the run folders.

    After `dvc pull` or `dvc checkout`, or after MLflow's store was away or lost. Unfinished and failed trainings are
    recorded, too, and those whose process is gone are marked as failed. What is there already stays as it is.
    """
    from ..jobs.model_page import write_model_page
    from ..params import load_params
    from ..tracking.record import files_of
    from ..tracking.record import sync as sync_runs

    params = load_params()
    for folder in sorted((params.root / "runs").glob("*/*")):
        write_model_page(files_of(folder))
    for done in sync_runs(params.root, checkpoints=params.runtime.checkpoints):
        what = f"{done.points} values, {done.files} files" if done.run_id else done.reason
        print(f"{done.dataset}/{done.model}: {done.action}, {what}")
