"""The house rules: who may import whom, and that graph, scripts and numbers agree."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "actionzoo"


ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "commands")
"""The package's folders, but for the command line."""


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that the file imports, at whatever depth."""
    inside = path.is_relative_to(PROJECT / "src")
    package = list(path.relative_to(PROJECT / "src").parent.parts) if inside else []
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def importers(names: tuple[str, ...], folder: Path) -> set[str]:
    return {
        str(path.relative_to(PROJECT))
        for path in folder.rglob("*.py")
        if any(name == top or name.startswith(f"{top}.") for name in imports(path) for top in names)
    }


@pytest.mark.parametrize(
    ("names", "only"),
    [
        (("mlflow",), {f"src/actionzoo/tracking/{name}.py" for name in ("record", "registry", "store", "system")}),
        (("decord", "simplejpeg"), {"src/actionzoo/clips/readers.py"}),
        (("ffmpeg", "imageio_ffmpeg"), {"src/actionzoo/kinetics/transcode.py"}),
        (("onnx", "onnxruntime", "onnxscript"), {"src/actionzoo/predict/export.py"}),
        (("dask", "distributed"), {"src/actionzoo/kinetics/cluster.py"}),
        (("dvc", "dvc_objects"), {"src/actionzoo/files/dvc_remote.py"}),
        (("prefect",), set()),
    ],
)
def test_each_foreign_tool_sits_behind_one_file(names, only):
    assert importers(names, PACKAGE) == only


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("kinetics", ("torch", "actionzoo.clips", "actionzoo.engine", "actionzoo.models", "actionzoo.params")),
        ("models", ("actionzoo.kinetics", "actionzoo.clips", "actionzoo.engine", "numpy", "actionzoo.params")),
        ("engine", ("actionzoo.clips", "actionzoo.models", "actionzoo.tracking", "numpy", "actionzoo.params")),
        ("clips", ("actionzoo.engine", "actionzoo.models", "actionzoo.zoo", "actionzoo.tracking")),
        *((room, ("actionzoo.cli", "actionzoo.commands", "typer")) for room in ROOMS),
    ],
)
def test_imports_run_downward(folder, forbidden):
    assert importers(forbidden, PACKAGE / folder) == set()


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions and under TYPE_CHECKING count too."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {name: (imports(path) & paths.keys()) - {name} for name, path in paths.items()}
    assert "actionzoo.records" in graph["actionzoo.accuracy"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_flows_know_no_network():
    learning = ("torch", "mlflow", "decord", "actionzoo.models", "actionzoo.engine", "actionzoo.clips", "actionzoo.zoo")
    assert importers(learning, PROJECT / "flows") == set()


def test_models_and_engine_import_where_there_is_only_torch():
    """Everything but the standard library, torch and what torch itself needs is made unimportable."""
    code = """
import sys
import torch
blocked = {"numpy", "yaml", "pydantic", "mlflow", "dvc", "prefect", "decord", "cv2", "httpx", "rich", "simplejpeg"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not there")
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
sys.meta_path.insert(0, Block())
import actionzoo.models.slowfast, actionzoo.models.csn
import actionzoo.engine.train, actionzoo.engine.evaluate, actionzoo.engine.schedule, actionzoo.engine.benchmark
import actionzoo.engine.distributed, actionzoo.engine.norms, actionzoo.engine.precision
import actionzoo.engine.flops, actionzoo.engine.logs, actionzoo.engine.checkpoint, actionzoo.engine.metrics
import actionzoo.engine.views, actionzoo.engine.finished, actionzoo.engine.tensor_file
import actionzoo.engine.calibration
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dvc_stages_are_the_scripts_in_stages():
    graph = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    assert set(graph) == {path.stem for path in (PROJECT / "stages").glob("*.py")}
    for name, stage in graph.items():
        assert stage.get("do", stage)["cmd"].startswith(f"python stages/{name}.py")


SCRIPTS = [path for folder in ("stages", "reproduction") for path in sorted((PROJECT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_stage_explains_itself(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert f"example: python {script.parent.name}/{script.name}" in done.stdout


def test_files_that_the_readme_names_are_there():
    readme = (PROJECT / "README.md").read_text()
    named = {
        word.strip("`,.;:()")
        for word in readme.split()
        if word.strip("`,.;:()").startswith(("src/", "flows/", "stages/")) and "<" not in word
    }
    assert named and [name for name in named if not (PROJECT / name).exists()] == []


def test_commands_that_the_readme_names_exist():
    readme = (PROJECT / "README.md").read_text()
    makefile = (PROJECT / "Makefile").read_text()
    for target in {line.split()[1] for line in readme.splitlines() if line.strip().startswith("make ")}:
        assert f"\n{target}: " in makefile
