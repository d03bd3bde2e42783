"""The pages in Markdown keep what they promise: links, files, make targets, commands and their options."""

import re
from pathlib import Path
from typing import Any

import pytest

from actionzoo.cli import ALIASES, build

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md")]
PAGES += sorted((PROJECT / "docs").glob("*.md"))
FOLDERS = ("benchmarks/", "docs/", "flows/", "src/", "stages/", "tests/")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> list[str]:
    """The page's code spans and the lines of its indented blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^(?: {4,}| {7,})(\S.*)$", text, re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.is_file() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


@every_page
def test_named_files_exist(page: Path) -> None:
    words = {word.strip("`,.;:()") for line in code(page) for word in line.split()}
    named = {word for word in words if word.startswith(FOLDERS) and re.fullmatch(r"[\w./*-]+", word)}
    assert [name for name in sorted(named) if not any(PROJECT.glob(name))] == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    named = {match for line in code(page) for match in re.findall(r"^make ([a-z]+)", line)}
    assert [target for target in sorted(named) if f"\n{target}: " not in makefile] == []


def commands() -> dict[str, set[str]]:
    """Each command as it is typed, such as `data report` and the empty one -> its options; aliases included."""
    found: dict[str, set[str]] = {}

    def collect(command: Any, path: tuple[str, ...]) -> None:
        options = {name for param in command.params for name in param.opts if name.startswith("--")}
        found[" ".join(path)] = options | {"--help"}
        for name, below in getattr(command, "commands", {}).items():
            collect(below, (*path, name))

    collect(build(), ())
    return found


COMMANDS = commands()
WAS = {page: set(ALIASES) if page.name in ("glossary.md", "CHANGELOG.md") else set() for page in PAGES}
"""Old names of commands that a page may mention."""


def command_of(line: str) -> tuple[str, set[str]]:
    """The command and the options of what follows `actionzoo` on a command line."""
    words = line.split()
    size = max(size for size in range(3) if " ".join(words[:size]) in COMMANDS)
    if size == 0 and not words[0].startswith("-"):
        return words[0], set()
    return " ".join(words[:size]), {word.partition("=")[0].strip("[].,") for word in words if word.startswith("--")}


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = []
    for text in code(page):
        # behind two spaces stands a remark
        if match := re.match(r"(?:\$ )?actionzoo (\S.*?)(?:  |$)", text):
            name, options = command_of(match[1])
            if name not in COMMANDS or (name in ALIASES and name not in WAS[page]) or options - COMMANDS[name]:
                wrong.append(text)
    assert wrong == []


def test_the_readme_has_every_command() -> None:
    lines = [text.removeprefix("actionzoo ") for text in code(PROJECT / "README.md") if text.startswith("actionzoo ")]
    named = {command_of(line)[0] for line in lines}
    assert set(COMMANDS) - set(ALIASES) - {"", "data"} - named == set()


def test_the_glossary_is_reached_from_the_readme() -> None:
    assert "(docs/glossary.md)" in (PROJECT / "README.md").read_text(encoding="utf-8")
