"""How commands explain themselves: help pages in plain text, grouped by subject, and one sentence for a wrong word."""

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..names import did_you_mean
from .arguments import present_spelling


class Command(TyperCommand):
    """A command whose help page fits 80 columns; its epilog holds one example per line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, present_spelling(args))
        except typer.TyperException as error:
            if getattr(error, "ctx", ctx) is None:  # the parser itself does not know which command it works for
                error.__dict__["ctx"] = ctx
            raise

    def get_help_option(self, ctx: Any) -> Any:
        return _plain_flag(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_argument_usage, arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _format_params(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _format_epilog(self.epilog, formatter)


class Group(TyperGroup):
    """Commands listed by their panel; the commands of a group inside it are listed with it."""

    def get_help_option(self, ctx: Any) -> Any:
        return _plain_flag(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "COMMAND ..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self._visible():
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(
                (name, command.get_short_help_str(500))
            )
        width = max(len(name) for lines in panels.values() for name, _ in lines)
        for panel, lines in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), text) for name, text in lines])
        _format_params(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _format_epilog(self.epilog, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            known = [name for name, _ in self._visible()]
            ctx.fail(f"the command {name!r} is unknown{did_you_mean(name, known)}")
        return super().resolve_command(ctx, args)

    def _visible(self) -> list[tuple[str, Any]]:
        """Each command's name below this group, such as `data report`, and the command."""
        found: list[tuple[str, Any]] = []
        for name, command in self.commands.items():
            if command.hidden:
                continue
            if isinstance(command, Group):
                found += [(f"{name} {below}", each) for below, each in command._visible()]
            else:
                found.append((name, command))
        return found


def sentence(error: typer.TyperException) -> str:
    """What is wrong with a command line, in plain words.

    User text is quoted, so that a terminal interprets none of it.
    """
    context: Any = getattr(error, "ctx", None)
    param: Any = getattr(error, "param", None)
    option = getattr(error, "option_name", None)
    kind = type(error).__name__
    if kind == "NoSuchOption" and context is not None:
        known = [name for each in context.command.get_params(context) if not _is_hidden(each) for name in each.opts]
        return f"the option {option!r} is unknown{did_you_mean(option, known)}"
    if kind == "BadOptionUsage":
        return f"argument {option}: expected a value"
    if kind == "MissingParameter" and param is not None:
        return f"{_name(param)} is missing"
    if param is not None:
        return f"argument {_name(param)}: {error.message}"
    if error.message.startswith("Got unexpected extra argument"):
        return f"unexpected arguments: {error.message.partition('(s) (')[2].removesuffix(')')}"
    return error.message


def command_path(error: typer.TyperException) -> str:
    """The command whose line is wrong, such as `actionzoo data report`."""
    context: Any = getattr(error, "ctx", None)
    return "actionzoo" if context is None else str(context.command_path)


def _format_params(params: Sequence[Any], formatter: Any) -> None:
    shown = [param for param in params if not _is_hidden(param)]
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        lines = [(_declaration(param), _explanation(param)) for param in shown if param.param_type_name == kind]
        if lines:
            with formatter.section(title):
                formatter.write_dl(lines, col_max=24)


def _plain_flag(help_option: Any) -> Any:
    """The help option with a default that is a bool: typer imports pydantic to judge its own default, None."""
    if help_option is not None:
        help_option.default = False
        help_option.help = "print this page and exit"
    return help_option


def _format_epilog(epilog: str | None, formatter: Any) -> None:
    """Line by line, as written."""
    if epilog:
        formatter.write_paragraph()
        formatter.write("".join(f"{line}\n" for line in epilog.splitlines()))


def _is_hidden(param: Any) -> bool:
    return bool(getattr(param, "hidden", False))


def _name(param: Any) -> str:
    """As help and errors call it: `--topk`, `MODEL`."""
    return str(param.opts[0] if param.param_type_name == "option" else param.metavar or param.name.upper())


def _argument_usage(param: Any) -> str:
    name = _name(param) + ("..." if param.nargs != 1 else "")
    return name if param.required else f"[{name}]"


def _declaration(param: Any) -> str:
    if param.param_type_name == "argument":
        return _argument_usage(param)
    names = ", ".join(sorted(param.opts, key=len))
    return names if param.is_flag else f"{names} {param.metavar or param.name.upper()}"


def _explanation(param: Any) -> str:
    text = param.help or ""
    default = param.default
    if not param.show_default or default is None or isinstance(default, bool):
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return f"{text} (default {shown})"
