"""What is imported is declared, and what is installed is pinned with its sha256."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Name -> requirement and hashes, of each entry of the lock."""
    text = re.sub(r"\\\n", " ", LOCK)
    entries = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            parsed = Requirement(requirement)
            entries[canonicalize_name(parsed.name)] = parsed, hashes
    return entries


def imported(folder: Path) -> set[str]:
    """Top names of the packages that are imported anywhere below."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"actionzoo", "flows", "stages", "benchmarks", "tests"}


def owners(name: str) -> set[str]:
    return {canonicalize_name(owner) for owner in packages_distributions().get(name, ())}


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["src", "flows", "stages"])
def test_whatever_is_imported_is_declared(folder):
    declared = {canonicalize_name(requirement.name) for requirement in (*DECLARED, *EXTRAS)}
    assert {name for name in imported(ROOT / folder) if not owners(name) & declared} == set()


def test_each_entry_of_the_lock_has_one_version_and_hashes():
    entries = locked()
    assert len(entries) > 200
    for requirement, hashes in entries.values():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_the_lock_names_no_index_and_no_build_of_pytorch():
    assert not re.search(r"://|^--?\w|^(torch|triton|nvidia-|cuda-)", LOCK, re.MULTILINE)
    (torch,) = (ROOT / "constraints-torch.txt").read_text().split()
    assert Version(torch.removeprefix("torch==")) in next(r.specifier for r in DECLARED if r.name == "torch")


def test_what_is_declared_is_in_the_lock_in_a_version_of_the_range():
    entries = locked()
    for requirement in (*DECLARED, *EXTRAS):
        if requirement.name not in ("torch", "actionzoo"):
            found, _ = entries[canonicalize_name(requirement.name)]
            (version,) = (specifier.version for specifier in found.specifier)
            assert version in requirement.specifier, requirement


def test_decord_is_the_one_that_has_wheels_for_all_platforms():
    assert "decord" not in {requirement.name for requirement in DECLARED}
    assert owners("decord") == {"decord2"}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_nothing_that_is_declared_is_left_out_on_a_platform(python, system):
    """A marker in the lock that is false there would leave a package out of the hash-checked installation."""
    where = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system[0],
        "platform_machine": system[1],
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system[0]],
    }
    entries = locked()
    for requirement in DECLARED:
        if requirement.name != "torch":
            marker = entries[canonicalize_name(requirement.name)][0].marker
            assert marker is None or marker.evaluate(where), requirement
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
