"""The command `actionzoo`: what is not a stage of the pipeline. The commands themselves are in commands/."""

import copy
import os
import sys
from typing import Annotated, Any

import typer

from .commands import data, look, model, run
from .commands.usage import Group, command_path, sentence
from .process.stage import stage

ALIASES = {
    "rows": "models",
    "test": "evaluate",
    "states": "data states",
    "lists": "data lists",
    "data adopt": "data import-mmaction",
}
"""Older names of commands, hidden from help -> the present ones."""

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,  # names and messages are shown as they are, and help starts in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "example: actionzoo predict slowfast_r50_video holiday.mp4\n\n"
        f"older names that still work: {', '.join(ALIASES)}"
    ),
)
app.add_typer(data.app, name="data", help="Look at the chosen data set, verify it, or import one.")
app.add_typer(model.app)
app.add_typer(run.app)
app.add_typer(look.app)


_COMPLETION_HELP = {
    "install_completion": "let this shell complete commands, options and models",
    "show_completion": "print the completion script for this shell",
}


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from . import __version__

        print(f"actionzoo {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Train, evaluate and use the Kinetics-400 models of SlowFast and CSN."""


def build() -> Group:
    """The command line with all its commands."""
    command: Any = typer.main.get_command(app)
    for option in command.params:
        if option.name in _COMPLETION_HELP:
            option.default = False  # as for the help option in usage.py
            option.help = _COMPLETION_HELP[option.name]
    for old, new in ALIASES.items():
        *group, name = old.split()
        parent = command.commands[group[0]] if group else command
        alias = parent.commands[name] = copy.copy(_find(command, new))
        alias.name, alias.hidden = name, True
    built: Group = command
    return built


def _find(command: Any, path: str) -> Any:
    for name in path.split():
        command = command.commands[name]
    return command


def main() -> None:
    with stage("actionzoo"):
        command = build()
        if "_ACTIONZOO_COMPLETE" in os.environ:  # the shell asks for completions
            command.main(prog_name="actionzoo")
        try:
            with command.make_context("actionzoo", sys.argv[1:]) as context:
                command.invoke(context)
        except typer.Exit as done:
            sys.exit(done.exit_code)
        except typer.TyperException as error:
            _refuse(error)


def _refuse(error: typer.TyperException) -> None:
    """Say what is wrong with the command line, and leave with status 2."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.message, file=sys.stderr)
    else:
        path, what = command_path(error), sentence(error)
        see = " See" if what.endswith("?") else "; see"
        print(f"{path}: error: {what}{see} `{path} --help`", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
