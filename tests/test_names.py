"""One rule for what may become a path or a word of a command."""

import shutil
from pathlib import Path

import pytest
import yaml

from actionzoo.errors import UserError
from actionzoo.names import class_name_fault, containing, did_you_mean, is_name
from actionzoo.params import load_params

HOSTILE = [
    *("", ".", "..", "../../escaped", "a/b", "/tmp/x", "a\\b", "-rf", ".hidden", "a b", "a\nb", "a\0b", "~", "x" * 300),
    *("$(touch x)", "`touch x`", "a;b", "a|b", "a&b", "a>b", "a'b", 'a"b', "${data.name}", "a*", "?", "äöü", "動画"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_none(name):
    assert not is_name(name)


@pytest.mark.parametrize("name", ["kinetics400", "my-set_2.1", "0", "x" * 100])
def test_plain_names_are_names(name):
    assert is_name(name)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("where", ["data.name", "datasets", "recipes"])
def test_params_refuse_them_in_a_sentence(tmp_path, where, name):
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    if where == "data.name":
        raw["data"]["name"] = name
        raw["datasets"][name] = raw["datasets"]["demo"]
    else:
        raw[where][name] = next(iter(raw[where].values()))
    (tmp_path / "params.yaml").write_text(yaml.dump(raw, Dumper=Plain, sort_keys=False))
    shutil.copy("published.yaml", tmp_path)
    with pytest.raises(UserError, match="a name has letters, digits"):
        load_params(tmp_path / "params.yaml")


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


@pytest.mark.parametrize(
    "source",
    ["https://me:word@host/k", "http://host/k?X-Amz-Signature=0f", "https://token@host/k"],
)
def test_a_source_that_dvc_lock_would_give_away_is_refused(tmp_path, source, monkeypatch):
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["datasets"]["demo"]["source"] = source
    (tmp_path / "params.yaml").write_text(yaml.dump(raw, Dumper=Plain, sort_keys=False))
    shutil.copy("published.yaml", tmp_path)
    with pytest.raises(UserError, match="ACTIONZOO_SOURCE") as error:
        load_params(tmp_path / "params.yaml")
    assert "word" not in str(error.value).replace("password", "") and "0f" not in str(error.value)
    monkeypatch.setenv("ACTIONZOO_SOURCE", source)
    assert load_params("params.yaml").dataset.source == source


@pytest.mark.parametrize(
    ("word", "meant"),
    [("kinetics40", "kinetics400"), ("r50_video", "slowfast_r50_video_4x16"), ("zzz", ""), ("", ""), (7, "")],
)
def test_the_nearest_name_is_told(word, meant):
    said = did_you_mean(word, ["kinetics400", "slowfast_r50_video_4x16", "demo"])
    assert said == (f"; did you mean {meant}?" if meant else "")


def test_a_part_is_found_in_names_whatever_its_case():
    assert containing("R50", ["slow_r50", "slow_r101", "R50_fast"]) == ["slow_r50", "R50_fast"]


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "‮right to left", "x" * 201, "zero\0byte", "\r"])
def test_what_is_no_line_of_text_names_no_class(name):
    assert class_name_fault(name)


@pytest.mark.parametrize("name", ["massaging person's head", "passing American football (in game)", "打篮球", "=1+1"])
def test_texts_of_one_line_name_classes(name):
    assert class_name_fault(name) == ""
