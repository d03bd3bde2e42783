"""Help pages: every command explains itself, and its examples are accepted."""

import shlex

import pytest

from actionzoo.cli import ALIASES, build
from actionzoo.commands.usage import Group


def commands(group: Group, path: str = "") -> dict[str, object]:
    """All commands, hidden ones too: `data report` -> the command."""
    found: dict[str, object] = {}
    for name, command in group.commands.items():
        found[f"{path}{name}"] = command
        if isinstance(command, Group):
            found |= commands(command, f"{path}{name} ")
    return found


COMMANDS = commands(build())


def examples(command) -> list[str]:
    text = command.epilog.replace("\\\n", " ")
    return [line.removeprefix("example: ") for line in text.splitlines() if line.startswith("example: ")]


EXAMPLES = [line for name, command in COMMANDS.items() if name not in ALIASES for line in examples(command)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_within_80_columns(name, actionzoo):
    done = actionzoo(*name.split(), "--help")
    assert done.status == 0 and done.err == ""
    assert done.out.startswith(f"Usage: actionzoo {name} [OPTIONS]")
    assert "example: actionzoo " in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ALIASES])
def test_every_command_has_an_example_of_itself(name):
    assert all(line.startswith(f"actionzoo {name}") for line in examples(COMMANDS[name])) and examples(COMMANDS[name])


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_is_accepted(line):
    context = build().make_context("actionzoo", shlex.split(line)[1:])
    while isinstance(command := context.command, Group):
        words = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, words)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, Group)])
def test_every_option_and_argument_says_what_it_is(name):
    assert [param.name for param in COMMANDS[name].params if not param.help] == []


def test_the_first_page_lists_every_command_by_its_panel(actionzoo):
    page = actionzoo("--help").out
    for panel in ("Data:", "Model:", "Run:", "Look:"):
        assert f"\n{panel}\n" in page
    for name, command in COMMANDS.items():
        is_listed = any(line.startswith(f"  {name}  ") for line in page.splitlines())
        assert is_listed is not (name in ALIASES or isinstance(command, Group))
    assert max(map(len, page.splitlines())) <= 80


def test_the_first_page_names_the_older_commands(actionzoo):
    last = actionzoo("--help").out.splitlines()[-1]
    assert all(name in last for name in ALIASES)


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_an_older_name_is_the_present_command(old, new):
    assert COMMANDS[old].callback is COMMANDS[new].callback and COMMANDS[old].hidden


def test_minus_h_is_help(actionzoo):
    assert actionzoo("models", "-h").out == actionzoo("models", "--help").out


@pytest.mark.parametrize("words", [[], ["data"]], ids=["actionzoo", "actionzoo data"])
def test_without_a_command_the_page_goes_to_stderr_with_status_2(words, actionzoo):
    done = actionzoo(*words)
    assert done.status == 2 and done.out == "" and done.err.startswith("Usage: actionzoo")
