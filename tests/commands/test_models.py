"""Names of models: listed, completed, found from a part."""

import pytest

from actionzoo.commands.models import complete_models, read_model_names, resolve, resolve_checkpoint
from actionzoo.errors import UserError
from actionzoo.params import load_params

SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


def test_the_models_are_those_of_params_yaml_in_its_order(project, actionzoo):
    assert actionzoo("models").out.splitlines() == load_params().models() == read_model_names()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipes: [", "params.yaml is no YAML"),
        ("recipes:\n  a: {}\n  a: {}\n", "the key 'a' is there already"),
        ("recipes:\n  a/b: {}\n", "a name has letters"),
        ("recipes: [a, b]\n", "params.yaml"),
        ("- recipes\n- {a: 1}\n", "params.yaml must hold sections"),
        ("recipes: *nowhere\n", "params.yaml is no YAML"),
        ("[" * 500, "params.yaml is no YAML"),
        ("{}", "params.yaml"),
        ("", "params.yaml must hold sections"),
    ],
)
def test_a_broken_file_is_refused_by_name(project, text, said, actionzoo):
    (project / "params.yaml").write_text(text)
    done = actionzoo("models")
    assert done.status == 1 and done.out == "" and said in done.err and "Traceback" not in done.err


def test_below_the_project_the_models_are_the_same(project, monkeypatch, actionzoo):
    names = actionzoo("models").out
    (project / "films").mkdir()
    monkeypatch.chdir(project / "films")
    assert actionzoo("models").out == names


def test_names_complete_by_their_beginning(project):
    assert complete_models("slowfast_r50_v") == [SLOWFAST]
    assert complete_models("nothing") == []


def test_completion_is_silent_where_params_yaml_is_broken(project):
    (project / "params.yaml").write_text("recipes: [")
    assert complete_models("") == []


def test_a_part_that_no_other_model_has_is_enough(project, capsys):
    assert resolve(load_params(), "slowfast_r50_video") == SLOWFAST
    assert capsys.readouterr().err == f"model: {SLOWFAST}\n"


def test_a_full_name_is_not_told_again(project, capsys):
    assert resolve(load_params(), SLOWFAST) == SLOWFAST
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("part", ["slowfast", "NONE", ""])
def test_a_part_of_several_or_none_is_refused(project, part):
    with pytest.raises(UserError):
        resolve(load_params(), part)


@pytest.mark.parametrize("place", ["a/slowfast_r50_video", "x.pth", "models:/slowfast/1", "https://host/x", "here"])
def test_a_path_or_address_is_no_part_of_a_name(project, place):
    (project / "here").mkdir()
    assert resolve_checkpoint(load_params(), place) == place


def test_a_checkpoint_may_be_named_by_a_part_of_its_model(project):
    assert resolve_checkpoint(load_params(), "slowfast_r50_video") == SLOWFAST


def test_every_command_takes_a_part_of_a_name(project, actionzoo):
    (project / "film.mp4").write_bytes(b"")
    for line in (
        "predict slowfast_r50_video film.mp4",
        "export slowfast_r50_video --to torchscript out.pt",
        "evaluate slowfast_r50_video slowfast_r50_video",
        "train slowfast_r50_video",
    ):
        done = actionzoo(*line.split())
        assert done.status == 1 and done.err.startswith(f"model: {SLOWFAST}\n"), line
        assert done.err.count("model: ") == 1 or line.startswith("evaluate")
