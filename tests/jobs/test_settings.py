"""settings.yaml: what the stages of a data set depend on."""

import subprocess
import sys

import pytest
import yaml

from actionzoo.jobs.settings import settings, settings_of
from actionzoo.params import load_params
from tests.test_stale import CSN, PROJECT, VIDEO

SECTIONS = ["model", "init", "clips", "augment", "optim", "schedule", "test"]


@pytest.mark.parametrize("dataset", ["demo", "kinetics400", "mirror"])
def test_every_section_of_every_model_is_there(params, tmp_path, dataset):
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    raw["data"]["name"] = dataset
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (tmp_path / "published.yaml").symlink_to(PROJECT / "published.yaml")
    settings(load_params(tmp_path / "params.yaml"))
    made = yaml.safe_load((tmp_path / "data" / dataset / "settings.yaml").read_text())
    assert list(made["overrides"]) == list(made["benchmark"]) == params.models()
    assert all(list(sections) == SECTIONS for sections in made["overrides"].values())
    assert list(made["lists"]) == ["train", "val", "test"]
    if dataset == "kinetics400":
        assert {str(values) for sections in made["overrides"].values() for values in sections.values()} == {"{}"}
        assert made["source"]["source"] == "https://s3.amazonaws.com/kinetics" and made["source"]["synthetic"] is None


def test_a_model_s_own_value_comes_after_that_of_its_family(params):
    overrides = settings_of(params)["overrides"]
    assert overrides[CSN]["optim"] == {"max_grad_norm": 10.0, "videos_per_gpu": 8}
    assert overrides[CSN]["schedule"]["epochs"] == 11 and overrides[VIDEO]["schedule"]["epochs"] == 6
    assert settings_of(params)["benchmark"][CSN] == {"videos_per_gpu": 8}


def test_a_value_that_the_recipe_has_anyway_is_no_override(params):
    same = params.changed(VIDEO, optim={"momentum": 0.9})
    assert settings_of(same) == settings_of(params)


def test_equal_params_give_equal_bytes_and_no_torch_is_loaded(params, tmp_path):
    def made() -> bytes:
        code = "import sys, actionzoo.params as p, actionzoo.jobs.settings as s; s.settings(p.load_params())"
        code += "; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        return (tmp_path / "data/demo/settings.yaml").read_bytes()

    for name in ("params.yaml", "published.yaml"):
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    assert made() == made()
