"""Measured beside published: what may be compared, and what comes of it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.labels import kinetics400, places
from actionzoo.params import load_params
from actionzoo.released import judge, write_released_report

PROJECT = Path(__file__).resolve().parents[1]
ROW = "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb"


@pytest.fixture
def params(monkeypatch):
    monkeypatch.delenv("ACTIONZOO_SOURCE", raising=False)
    return load_params(PROJECT / "params.yaml")


@pytest.fixture
def kinetics(params):
    return dataclasses.replace(params, name="kinetics400", dataset=params.datasets["kinetics400"])


@pytest.mark.parametrize(
    ("top1", "clips", "verdict"),
    [
        (0.8276, 19_796, "reproduced"),
        (0.8230, 19_796, "reproduced"),
        (0.8330, 19_500, "not reproduced"),
        (0.8200, 19_881, "not reproduced"),
        (0.8276, 17_000, "different data"),
    ],
)
def test_a_published_number_is_reproduced_within_the_interval_of_the_clips_evaluated(kinetics, top1, clips, verdict):
    assert judge(kinetics, ROW, {"top1": top1, "clips": clips}, 82.76)[0] == verdict


def test_another_data_set_or_recipe_is_another_question(params, kinetics):
    assert judge(params, ROW, {"top1": 0.8276, "clips": 19_796}, 82.76) == ("different data", "this is demo")
    changed = dataclasses.replace(kinetics.dataset, overrides={"csn": {"test": {"num_crops": 1}}})
    verdict, why = judge(dataclasses.replace(kinetics, dataset=changed), ROW, {"top1": 0.8276, "clips": 19_796}, 82.76)
    assert verdict == "different data" and "test.num_crops: 3 -> 1" in why


def test_each_published_file_has_its_number(params):
    published = {row: recipe.published.released for row, recipe in params.recipes.items()}
    assert {kind: found[1:] for kind, found in published[ROW].items()} == {
        "ckpt": (82.76, 95.68),
        "infer_ckpt": (82.6, 95.3),
    }
    corrected = published["slowfast_r50_video_4x16x1_256e_kinetics400_rgb"]
    assert [found[1:] for found in corrected.values()] == [(73.95, 91.5)]
    assert all(published.values())


def test_the_table_names_every_published_file_and_what_is_not_run(kinetics, tmp_path):
    line = write_released_report(kinetics, tmp_path)
    files = sum(len(recipe.published.released) for recipe in kinetics.recipes.values())
    assert f"0 of {files} published files tested" in line
    table = (tmp_path / "released/report/kinetics400/released.md").read_text()
    assert table.count("not run yet") == files and all(f"`{row}`" in table for row in kinetics.rows())
    first = table
    write_released_report(kinetics, tmp_path)
    assert (tmp_path / "released/report/kinetics400/released.md").read_text() == first


def test_published_numbers_keep_their_text(kinetics, tmp_path):
    write_released_report(kinetics, tmp_path)
    out = tmp_path / "released/report/kinetics400"
    for name in ("released.md", "released.html"):
        text = (out / name).read_text()
        assert "77.90" in text and "93.20" in text and "93.0" in text and "92.80" not in text
    files = json.loads((out / "released.json").read_text())["files"]
    (r101,) = [line for line in files if line["row"] == "slowfast_r101_8x8x1_256e_kinetics400_rgb"]
    assert (r101["published_top1"], r101["published_top1_text"]) == (77.9, "77.90")


def test_the_label_map_is_that_of_the_published_weights():
    text = "".join(f"{name}\n" for name in kinetics400())
    assert hashlib.md5(text.encode()).hexdigest() == "41a47d45938e2f6e4f3eac44b26376e5"
    assert kinetics400() == sorted(kinetics400())


def test_classes_are_found_however_they_are_spelt():
    known = kinetics400()
    assert [known[i] for i in places(["massaging_persons_head", "hurling (sport)"], known)] == [
        "massaging person's head",
        "hurling (sport)",
    ]
    with pytest.raises(UserError, match=r"1 of 2 classes .* 'walking a snail'"):
        places(["yoga", "walking a snail"], known)
