"""Wrong command lines: one plain sentence on stderr, status 2."""

import pytest


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predcit", "actionzoo: error: the command 'predcit' is unknown; did you mean predict? See `actionzoo --help`"),
        ("xyz", "actionzoo: error: the command 'xyz' is unknown; see `actionzoo --help`"),
        ("state", "actionzoo: error: the command 'state' is unknown; did you mean data states? See `actionzoo --help`"),
        ("--versoin", "the option '--versoin' is unknown; did you mean --version?"),
        ("data reprot", "actionzoo data: error: the command 'reprot' is unknown; did you mean report?"),
        ("predict M v.mp4 --windw 2", "the option '--windw' is unknown; did you mean --window?"),
        ("models --foo", "the option '--foo' is unknown; see `actionzoo models --help`"),
        ("data states video_256", "argument FORM: 'video_256' is unknown; did you mean videos_256?"),
        ("evaluate M c.pth --split vall", "argument --split: 'vall' is unknown; did you mean val? (train, val, test)"),
        ("evaluate M c.pth --topk", "actionzoo evaluate: error: argument --topk: expected a value; see"),
        ("evaluate M", "actionzoo evaluate: error: CHECKPOINT is missing; see `actionzoo evaluate --help`"),
        ("export M out.onnx", "actionzoo export: error: --to is missing"),
        ("predict M v.mp4 --crops 2", "argument --crops: '2' is unknown (1, 3)"),
        ("models a b", "actionzoo models: error: unexpected arguments: a b; see"),
        ("scores a --weights 1 2 x --weights y", "argument --weights: 'y' is no number"),
    ],
)
def test_a_wrong_line_is_refused_in_one_sentence(line, said, actionzoo):
    done = actionzoo(*line.split())
    assert done.status == 2 and done.out == ""
    assert said in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("word", ["[red]x[/red]", "a[b", "\x1b[31mx", "\udcff"])
def test_what_people_type_is_shown_as_it_is(word, actionzoo):
    for words in (["data", "states", word], [word]):
        done = actionzoo(*words)
        assert done.status == 2 and repr(word) in done.err and "\x1b" not in done.err


def test_a_file_name_in_brackets_reaches_the_command(project, actionzoo):
    done = actionzoo("predict", "none", "[bold]film[/bold].mp4")
    assert done.status == 1 and "[bold]film[/bold].mp4 is not there" in done.err


def test_ctrl_c_leaves_with_130(project, actionzoo, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("actionzoo.params.load_params", interrupted)
    done = actionzoo("params")
    assert done.status == 130 and done.err.startswith("actionzoo: interrupted")


def test_what_the_user_can_mend_leaves_with_1(project, actionzoo):
    (project / "params.yaml").write_text("recipes: [")
    done = actionzoo("params")
    assert done.status == 1 and done.err.startswith("actionzoo: error: params.yaml is no YAML")
