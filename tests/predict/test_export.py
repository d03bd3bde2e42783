"""Files that run without this package, and give the network's numbers."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actionzoo.errors import UserError
from actionzoo.params import network_of
from actionzoo.predict.export import LARGEST_ERROR, METADATA, export_model
from actionzoo.predict.export_formats import FORMATS
from actionzoo.recipe import as_dict
from actionzoo.weights.checkpoints import TrainedModel
from actionzoo.zoo import build_model

PROJECT = Path(__file__).resolve().parents[2]
SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
CLASSES = ["abseiling", "massaging person's head", "naïve (dance) 跳舞"]


@pytest.fixture(scope="module", params=[SLOWFAST, CSN])
def trained(request, params) -> TrainedModel:
    """At the demo's size, with norms that do something."""
    model, spec = network_of(as_dict(params.recipe(request.param)), params.path)
    torch.manual_seed(3)
    network = build_model(model, len(CLASSES))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.2, 1)
            module.running_mean.uniform_(-0.2, 0.2)
    return TrainedModel(network.eval(), CLASSES, request.param, spec, Path("best.pth"), "ab" * 32)


def clips(trained: TrainedModel, batch: int) -> torch.Tensor:
    size = trained.test_spec.crop_size
    return torch.randn(batch, 3, trained.test_spec.clip_len, size, size, generator=torch.Generator().manual_seed(batch))


def reload(to: str, path: Path):
    """(function from clips to logits, metadata), read as a stranger would."""
    if to == "torchscript":
        extra = {METADATA: ""}
        return torch.jit.load(path, _extra_files=extra), json.loads(extra[METADATA])
    if to == "torch.export":
        extra = {METADATA: ""}
        return torch.export.load(path, extra_files=extra).module(), json.loads(extra[METADATA])
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    return lambda clips: torch.from_numpy(session.run(None, {name: clips.numpy()})[0]), about


only_csn = pytest.mark.parametrize("trained", [CSN], indirect=True)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_read_back_it_gives_the_networks_logits_for_any_batch(trained, tmp_path, to):
    said = export_model(trained, to, tmp_path / "out.pt2")
    run, about = reload(to, tmp_path / "out.pt2")
    for batch in (1, 2, 3):
        with torch.no_grad():
            exact = trained.network(clips(trained, batch))
            error = (run(clips(trained, batch)) - exact).abs().max() / exact.std()
        assert error < LARGEST_ERROR
    assert f"{LARGEST_ERROR:g} allowed (batches of 1 and 2)" in said and trained.model_name in said
    assert about["classes"] == CLASSES and about["row"] == trained.model_name
    assert about["input"]["shape"] == ["batch", 3, 32, 44, 44] and about["frame_interval"] == 2
    assert (about["mean"], about["std"]) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt2"]


@only_csn
def test_a_batch_that_was_fixed_is_the_only_one(trained, tmp_path):
    said = export_model(trained, "torch.export", tmp_path / "out.pt2", batch=2)
    run, about = reload("torch.export", tmp_path / "out.pt2")
    assert about["input"]["shape"][0] == about["output"]["shape"][0] == 2 and "(batches of 2)" in said
    assert run(clips(trained, 2)).shape == (2, len(CLASSES))
    with pytest.raises(Exception, match=r"(?i)2|batch|dimension"):
        run(clips(trained, 3))


@only_csn
def test_torchscript_runs_where_this_package_is_not(trained, tmp_path):
    export_model(trained, "torchscript", tmp_path / "out.pt")
    code = f"""
import sys, torch
sys.modules["actionzoo"] = None  # cannot be imported
print(tuple(torch.jit.load({str(tmp_path / "out.pt")!r})(torch.zeros(1, 3, 32, 44, 44)).shape))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 3)"


@only_csn
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that is the point
def test_what_is_too_far_off_is_not_kept(trained, tmp_path):
    class Fickle(torch.nn.Module):
        """What tracing takes for a constant."""

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.mean(dim=(2, 3, 4)) * float(clips.mean())

    (tmp_path / "out.pt").write_text("what was there before")
    with pytest.raises(UserError, match=r"torchscript gives other logits than the network: \S+ of their standard dev"):
        export_model(dataclasses.replace(trained, network=Fickle()), "torchscript", tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    assert (tmp_path / "out.pt").read_text() == "what was there before"


@only_csn
def test_onnx_without_its_packages_says_how_to_get_them(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed; pip install 'actionzoo\[export\]'"):
        export_model(trained, "onnx", tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@only_csn
def test_a_folder_is_no_file_to_write(trained, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        export_model(trained, "onnx", tmp_path)
    with pytest.raises(UserError, match=r"call it out\.pt2"):
        export_model(trained, "torch.export", tmp_path / "out.pt")
