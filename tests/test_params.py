import pickle
import shutil
from pathlib import Path

import pytest
import yaml

import actionzoo
from actionzoo.errors import UserError
from actionzoo.params import load_params

PROJECT = Path(__file__).resolve().parents[1]
R101 = "slowfast_r101_8x8x1_256e_kinetics400_rgb"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.delenv("ACTIONZOO_SOURCE", raising=False)
    shutil.copy(PROJECT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


def changed(file: Path, find: str, put: str) -> Path:
    text = file.read_text()
    assert find in text
    file.write_text(text.replace(find, put))
    return file


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        (
            "frame_interval: 2",
            "frame_intervall: 2",
            r"clips\.frame_intervall is unknown; did you mean frame_interval\?",
        ),
        ("weight_decay: 1.0e-4", "weight_decay: 1e-4", r"weight_decay is '1e-4'.*write 1\.0e-4, not 1e-4"),
        ("alpha: 8", "alpha: 8.5", r"model\.alpha is 8\.5"),
        ("momentum: 0.9, ", "", r"optim\.momentum is missing"),
        ("family: csn", "family: cns", r"model is .*'cns'"),
        ("crf: 21", "crf: 99", r"prepare\.encode\.crf is 99"),
        ("name: demo", "name: dmeo", r"data\.name is 'dmeo'.*did you mean demo"),
        ("test: {num_clips: 2", "test: {num_clip: 2", r"overrides\.slowfast\.test\.num_clip is unknown; did you mean"),
        (
            "crop_size: 44",
            "crop_size: 45",
            r"crops 45 pixels \(test\.crop_size\) out of frames .* 44 \(augment\.resize\)",
        ),
        ("  deterministic", " deterministic", r"params\.yaml is no YAML"),
    ],
)
def test_a_fault_is_told_with_file_key_and_value(file, find, put, said):
    with pytest.raises(UserError, match=rf"(?s)params\.yaml.*{said}" if "YAML" not in said else said):
        load_params(changed(file, find, put))


def test_all_faults_come_in_one_report(file):
    changed(file, "alpha: 8", "alpha: none")
    with pytest.raises(UserError) as caught:
        load_params(changed(file, "crf: 21", "crf: 99"))
    assert "alpha" in str(caught.value) and "crf" in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="run from the project's folder"):
        load_params(tmp_path / "params.yaml")


def test_a_source_is_all_that_a_data_set_needs(file):
    raw = yaml.safe_load(file.read_text())
    raw["datasets"]["mine"] = {"source": "/some/mirror"}
    raw["data"]["name"] = "mine"
    file.write_text(yaml.safe_dump(raw))
    params = load_params(file)
    assert params.dataset.source == "/some/mirror"
    assert params.overrides(params.models()[0]) == []


def test_the_environment_names_the_source(file, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_SOURCE", "http://127.0.0.1:9")
    assert load_params(file).dataset.source == "http://127.0.0.1:9"


def test_overrides_are_listed_as_what_they_change(file):
    params = load_params(file)
    row = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
    assert "model.bn_frozen: true -> false" in params.overrides(row)
    assert params.recipes[row].model.bn_frozen and not params.recipe(row).model.bn_frozen


def test_dvc_reads_the_file_alike():
    """DVC's YAML reader is another one, and stricter."""
    from dvc.utils.serialize import parse_yaml

    text = (PROJECT / "params.yaml").read_text()
    assert parse_yaml(text, "params.yaml") == yaml.safe_load(text)


def test_names_of_rows_say_what_the_recipes_hold():
    params = load_params(PROJECT / "params.yaml")
    for row, recipe in params.recipes.items():
        if recipe.model.family == "slowfast":
            slow_frames = recipe.clips.clip_len // recipe.model.alpha
            tau = recipe.model.alpha * recipe.clips.frame_interval
            assert f"_{slow_frames}x{tau}x1_{recipe.schedule.epochs}e_" in row
            assert f"r{recipe.model.slow_depth}" in row
        else:
            clip = f"_{recipe.clips.clip_len}x{recipe.clips.frame_interval}x1_{recipe.schedule.epochs}e_"
            assert clip in row and f"{recipe.model.bottleneck}csn" in row and f"r{recipe.model.depth}" in row


def test_the_package_offers_rows_and_networks(monkeypatch):
    monkeypatch.chdir(PROJECT)
    import torch

    for row in actionzoo.rows():
        with torch.device("meta"):
            model = actionzoo.create_model(row)
            assert model.eval()(torch.empty(1, 3, 32, 64, 64)).shape == (1, 400)
    with pytest.raises(UserError, match="did you mean slowfast_r50_video"):
        actionzoo.create_model("slowfast_r50_video_4x16x1_256e_kinetics400")


def test_a_published_number_keeps_its_text_in_the_recipe_that_is_used():
    params = load_params(PROJECT / "params.yaml")
    for recipe in (params.recipes[R101], params.recipe(R101), pickle.loads(pickle.dumps(params.recipe(R101)))):
        (top1,) = recipe.published.top1
        assert str(top1) == f"{top1}" == "77.90" and top1 == 77.9


@pytest.mark.parametrize("written", ['"77,9"', '"1e1"', '"-3"', '"100.1"', "true", '""', '"nan"', "[77.9]", '"٧٧"'])
def test_a_published_number_that_is_none_is_named(file, written):
    with pytest.raises(UserError, match=r"published\.top1(\.0)? is .*expected a percentage"):
        load_params(changed(file, 'top1: ["77.90"]', f"top1: [{written}]"))


def test_a_published_number_may_stand_without_quotes(file):
    assert load_params(changed(file, 'top1: ["77.90"]', "top1: [77.9]")).recipes[R101].published.top1 == (77.9,)
