"""The table of published weights."""

import dataclasses
import json
from html import unescape

import pytest

from actionzoo.params import Params
from actionzoo.records import Metrics, ReproducedFile, Reproduction
from actionzoo.report.reproduction_page import write_reproduction_page

MODEL = "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb"


@pytest.fixture
def kinetics(params) -> Params:
    return dataclasses.replace(params, name="kinetics400", dataset=params.datasets["kinetics400"])


def test_the_table_names_every_published_file_and_what_is_not_run(kinetics, tmp_path):
    line = write_reproduction_page(kinetics, tmp_path)
    files = sum(len(entry.released) for entry in kinetics.published.values())
    assert f"0 of {files} published files evaluated" in line
    table = (tmp_path / "reproduction/report/kinetics400/reproduction.md").read_text()
    assert table.count("not run yet") == files and all(f"`{row}`" in table for row in kinetics.models())
    first = table
    write_reproduction_page(kinetics, tmp_path)
    assert (tmp_path / "reproduction/report/kinetics400/reproduction.md").read_text() == first


def test_published_numbers_keep_their_text(kinetics, tmp_path):
    write_reproduction_page(kinetics, tmp_path)
    out = tmp_path / "reproduction/report/kinetics400"
    for name in ("reproduction.md", "reproduction.html"):
        text = (out / name).read_text()
        assert "77.90" in text and "93.20" in text and "93.0" in text and "92.80" not in text
    files = json.loads((out / "reproduction.json").read_text())["files"]
    (r101,) = [line for line in files if line["model"] == "slowfast_r101_8x8x1_256e_kinetics400_rgb"]
    assert (r101["published_top1"], r101["published_top1_text"]) == (77.9, "77.90")


def test_a_measured_file_stands_beside_its_published_numbers(kinetics, tmp_path):
    metrics = Metrics(accuracies={"top1": 0.8276, "top5": 0.9568}, clips=19_796, listed=19_796, protocol="10x3")
    measured = ReproducedFile(
        metrics=metrics,
        published_top1=82.76,
        published_top5=95.68,
        verdict="reproduced",
        why="+0.00 points",
        file="a.pth",
        sha256="ab",
    )
    Reproduction(files={"ckpt": measured}).write(
        tmp_path / f"reproduction/results/kinetics400/{MODEL}/reproduction.json"
    )
    write_reproduction_page(kinetics, tmp_path)
    out = tmp_path / "reproduction/report/kinetics400"
    texts = ("82.76 (82.23–83.28)", "95.68 (95.39–95.96)", "19,796 of 19,796, 10x3 views", "reproduced (+0.00 points)")
    for name in ("reproduction.md", "reproduction.html"):
        page = unescape((out / name).read_text())
        assert all(text in page for text in texts)
    files = json.loads((out / "reproduction.json").read_text())["files"]
    (line,) = [line for line in files if "verdict" in line]
    assert (line["model"], line["kind"], line["top1"], line["verdict"]) == (MODEL, "ckpt", 0.8276, "reproduced")
