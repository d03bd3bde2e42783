import base64
import dataclasses
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from actionzoo.errors import UserError
from actionzoo.params import load_params
from actionzoo.recipe import Note, Published
from actionzoo.records import RunRecord
from actionzoo.report.error_analysis import ClipScores, write_error_analysis
from actionzoo.report.page import write_page
from actionzoo.report.results import ModelEntry, model_entries, read_report
from actionzoo.report.tables import terminal_table, write_tables
from actionzoo.run_files import RunFiles
from actionzoo.weights.provenance import versions as installed
from tests.small_run import write_result

PROJECT = Path(__file__).resolve().parents[2]

PUBLISHED = {
    "config": "row",
    "gpus": "8x4",
    "backbone": "ResNet50",
    "pretrained": "None",
    "top1": (82.76, 82.6),
    "top5": (95.68, 95.3),
    "inference": "1.6 ((32+4)x10x3 frames)",
    "gpu_mem_mb": 6203,
    "ckpt": "https://example.org/row.pth",
    "ckpt_model": {},
    "infer_ckpt": None,
    "log": None,
    "json": "https://example.org/row.log.json",
    "note": Note(),
}


def row(name="row", family="slowfast", overrides=(), **published):
    return ModelEntry(
        name=name,
        family=family,
        short_side=256,
        published=Published(**PUBLISHED | published),
        overrides=tuple(overrides),
    )


class Project:
    """A project's small files, and the report made of them."""

    def __init__(self, folder):
        self.folder = folder

    def evaluated(self, name, dataset="demo", **values):
        values = {
            "top1": 0.8125,
            "top5": 1.0,
            "mean_class": 0.81,
            "clips": 16,
            "missing": 2,
            "protocol": "10x3",
        } | values
        write_result(RunFiles(self.folder, dataset, name), values)

    def write(self, path, text):
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def build(self, *rows, dataset="demo", out="report", **more):
        self.out = self.folder / out / dataset
        report = read_report(dataset=dataset, entries=rows, root=self.folder, out=self.out, **more)
        write_tables(report, self.out)
        write_page(report, self.out)
        return report

    def read(self, name):
        return (self.out / name).read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


class Page(HTMLParser):
    """Checks that every tag is closed in its turn; collects texts of cells, links, and tag names."""

    VOID = frozenset({"meta", "br", "wbr", "line", "circle", "polyline", "img"})

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.links, self.scripts, self.rows, self.text = [], set(), [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "a":
            self.links += [value for name, value in attributes if name == "href"]
        if tag == "script":
            self.scripts.append(dict(attributes).get("src", ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br" and self.rows:
            self.rows[-1][-1] += " "

    def handle_startendtag(self, tag, attributes):
        self.names.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, name):
        (found,) = [cells for cells in self.rows if cells and cells[0] == name]
        return [" ".join(cell.split()) for cell in found]


def markdown_rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]


def test_a_row_that_ran_stands_beside_the_published_and_one_that_did_not_stays_visible(project):
    project.evaluated("ran")
    report = project.build(row("ran"), row("waits", top1=(76.94,)))
    assert [model.entry.name for model in report.evaluated] == ["ran"]
    page = Page(project.read("zoo.html"))
    assert page.row("ran")[:9] == [
        *("ran", "short side 256", "8x4", "ResNet50", "None"),
        *("82.76/82.6", "81.25 demo 57.0–93.4 16 of 18 clips", "95.68/95.3", "100.00 demo 80.6–100.0"),
    ]
    assert page.row("waits")[5:7] == ["76.94", "not run yet"]
    assert "1 of 2 models evaluated" in page.text


def test_columns_are_those_of_the_published_tables_with_ours_beside(project):
    project.build(row())
    chinese = markdown_rows(project.read("zoo.zh.md"))
    for column in (
        "配置文件",
        "分辨率",
        "GPU 数量",
        "主干网络",
        "预训练",
        "top1 准确率",
        "top5 准确率",
        "推理时间 (video/s)",
        "GPU 显存占用 (M)",
    ):
        assert any(title.startswith(column) for title in chinese[0]), column
    assert chinese[0][-3:] == ["ckpt", "log", "json"]
    assert len(chinese[0]) == len(chinese[2]) == 16
    assert chinese[2][1] == "短边 256" and chinese[2][6] == "尚未运行"
    english = markdown_rows(project.read("zoo.md"))
    assert english[2][5:13] == [
        *("82.76/82.6", "not run yet", "95.68/95.3", "not run yet"),
        *("1.6 ((32+4)x10x3 frames)", "not run yet", "6203", "not run yet"),
    ]


def test_families_have_their_own_tables_in_the_order_of_the_rows(project):
    project.build(row("a", "csn"), row("b", "slowfast"), row("c", "csn"))
    text = project.read("zoo.md")
    assert (
        text.index("## CSN")
        < text.index("| [a]")
        < text.index("| [c]")
        < text.index("## SlowFast")
        < text.index("| [b]")
    )


def test_another_data_set_is_marked_and_shows_no_difference(project):
    project.evaluated("row")
    report = project.build(row())
    assert report.models[0].comparison.gap_points is None
    assert "This is not Kinetics-400" in Page(project.read("zoo.html")).text
    assert "> **⚠ This is not Kinetics-400" in project.read("zoo.md")
    assert "> **⚠ 这不是 Kinetics-400" in project.read("zoo.zh.md")
    assert json.loads(project.read("zoo.json"))["warnings"][0].startswith("This is not Kinetics-400")


def test_changed_recipes_are_marked_and_listed(project):
    project.evaluated("changed", "kinetics400", clips=19_404)
    report = project.build(
        row("changed", overrides=["schedule.epochs: 256 -> 10", "test.num_clips: 10 -> 2"]),
        row("as published"),
        dataset="kinetics400",
    )
    assert report.models[0].comparison.gap_points is None
    for text in (Page(project.read("zoo.html")).text, project.read("zoo.md")):
        assert "1 of 2 models ran with a changed recipe (see Changed recipes); not run yet: 1." in text
        assert "schedule.epochs: 256 -> 10\ntest.num_clips: 10 -> 2" in text


def test_where_no_row_ran_the_tables_say_so_and_speak_of_no_changed_recipe_that_ran(project):
    project.build(row("one", overrides=["a: 1 -> 2"]), row("two", overrides=["a: 1 -> 2"]))
    for text in (Page(project.read("zoo.html")).text, project.read("zoo.md")):
        assert "Nothing has run yet: none of the 2 models" in text and "ran with a changed recipe" not in text
    assert "尚未运行任何模型" in project.read("zoo.zh.md") and "修改过的配方运行" not in project.read("zoo.zh.md")
    assert not any(line["is_comparable"] for line in json.loads(project.read("zoo.json"))["rows"])
    assert 'class="badge"' not in project.read("zoo.html")


def test_only_rows_that_ran_are_counted_among_those_with_a_changed_recipe(project):
    changed = {"overrides": ["a: 1 -> 2"]}
    project.evaluated("evaluated")
    project.write("plots/demo/loss/trained/loss.csv", TRAIN_CURVE)
    report = project.build(*(row(name, **changed) for name in ("evaluated", "trained", "a", "b", "c")))
    assert "2 of 5 models ran with a changed recipe (see Changed recipes); not run yet: 3." in project.read("zoo.md")
    assert "5 个模型中有 2 个使用修改过的配方运行（见下文），3 个尚未运行" in project.read("zoo.zh.md")
    assert "2 of 5 models ran" in " ".join(shown(report, 200).split())
    project.build(row("evaluated"), row("trained"), row("a", **changed))
    assert "ran with a changed recipe" not in project.read("zoo.md") and "Nothing has run" not in project.read("zoo.md")


def test_few_clips_are_told_beside_changed_recipes(project):
    project.evaluated("few", "kinetics400", clips=994)
    project.evaluated("changed", "kinetics400", clips=19_404)
    project.build(row("few"), row("changed", overrides=["a: 1 -> 2"]), dataset="kinetics400")
    text = project.read("zoo.md")
    assert (
        "1 of 2 models ran with a changed recipe" in text
        and "Evaluated on fewer than 90 % of the 19,796 published validation clips: 1 of 2 models" in text
    )


def test_on_kinetics_400_as_published_the_difference_is_shown_and_nothing_is_marked(project):
    project.evaluated("row", "kinetics400", top1=0.83, clips=19_404)
    imported = "https://example.org/vmz.pth"  # which has the second of the published numbers
    report = project.build(row(infer_ckpt=imported), dataset="kinetics400")
    assert report.models[0].comparison.gap_points == pytest.approx(0.24)
    assert Page(project.read("zoo.html")).row("row")[6].startswith("83.00 +0.24 82.5–83.5")
    assert "⚠" not in project.read("zoo.html") + project.read("zoo.md") + project.read("zoo.zh.md")


def test_the_difference_is_to_the_corrected_number_and_both_are_shown(project):
    project.evaluated("row", "kinetics400", top1=0.7415, clips=19_404)
    project.build(row(top1=("74.34", "73.95")), dataset="kinetics400")
    cells = Page(project.read("zoo.html")).row("row")
    assert cells[5] == "74.34/73.95" and cells[6].startswith("74.15 +0.20 ")


def test_a_model_of_ones_own_is_shown_without_published_numbers(project):
    params = load_params(PROJECT / "params.yaml")
    recipe = next(iter(params.recipes.values()))
    (mine,) = model_entries(dataclasses.replace(params, recipes={"mine": recipe}, published={}))
    mine = dataclasses.replace(mine, overrides=())
    project.evaluated("mine", dataset="kinetics400", clips=19_796, listed=19_796, missing=0)
    report = project.build(mine, dataset="kinetics400")
    (line,) = [line for line in markdown_rows(project.read("zoo.md")) if "mine" in line[0]]
    assert [line[column] for column in (2, 3, 4, 5, 7, 9, 11)] == [""] * 7 and line[6].startswith("**81.25")
    assert Page(project.read("zoo.html")).row("mine")[5] == ""
    assert "not comparable (nothing published)" in project.read("zoo.html")
    (entry,) = json.loads(project.read("zoo.json"))["rows"]
    assert (entry["published"], entry["top1_gap_points"], entry["is_comparable"]) == (None, None, False)
    assert "nothing published" in shown(report, 40) and "published ," not in shown(report, 40)


def test_a_part_of_the_validation_set_is_marked(project):
    project.evaluated("row", "kinetics400", clips=994)
    report = project.build(row(), dataset="kinetics400")
    assert report.models[0].comparison.gap_points is None
    assert "Evaluated on fewer than 90 % of the 19,796 published validation clips: 1 of 1 models" in project.read(
        "zoo.md"
    )


def test_texts_with_signs_of_html_and_markdown_are_shown_as_they_are(project):
    name = "<script>alert('x')</script> & \"r|w\" *_[a](b)"
    nasty = row(
        name.replace("/", ""),
        backbone="<b>|bold|",
        note=Note(en="5 < 6 & `code` | **not bold**"),
        overrides=["<i>: 1 -> 2"],
    )
    project.build(nasty, dataset="<demo>")
    page = Page(project.read("zoo.html"))
    assert "i" not in page.names and page.scripts == ["", "runs.js"]
    assert page.row(nasty.name)[3] == "<b>|bold|"
    assert "5 < 6 & `code` | **not bold**" in page.text and "<i>: 1 -> 2" in page.text
    text = project.read("zoo.md")
    assert "<script>" not in text and "<b>" not in text
    assert [len(cells) for cells in markdown_rows(text)] == [16, 16, 16]


def test_an_address_that_is_none_of_the_web_is_no_link(project):
    project.build(row(ckpt="javascript:alert(1)"))
    page = Page(project.read("zoo.html"))
    assert [link for link in page.links if not link.startswith("#")] == ["https://example.org/row.log.json"]
    assert "javascript:alert(1)" in page.text


def test_links_to_our_files_are_relative_and_lead_there(project):
    project.evaluated("row")
    project.write("runs/demo/row/best.pth", "weights")
    project.build(row(), row("waits"))
    ours = [link for link in Page(project.read("zoo.html")).links if not link.startswith(("https:", "#"))]
    assert set(ours) == {"../../runs/demo/row/best.pth", "../../runs/demo/row/result.json"}
    assert all((project.out / link).is_file() for link in ours)
    for name in ("zoo.md", "zoo.zh.md"):
        cells, waits = markdown_rows(project.read(name))[2:]
        assert cells[-3].endswith("](<../../runs/demo/row/best.pth>)")
        assert waits[-2:] == ["", "[json](<https://example.org/row.log.json>)"]
        assert cells[0] == "[row](<zoo.html#row>)"
        assert "](<../../runs/demo/row/result.json>)" in project.read(name).split("](<zoo.html#waits>)")[1]
    files = json.loads(project.read("zoo.json"))["rows"][0]["files"]
    assert files == {"ckpt": "../../runs/demo/row/best.pth", "result": "../../runs/demo/row/result.json"}


def test_our_logs_stand_in_no_output_because_their_names_hold_a_time(project):
    """The page has places for them, which runs.js fills in."""
    project.evaluated("row")
    project.write("runs/demo/row/20260101_120000.log.json", "{}")
    project.build(row(), row("waits"))
    assert not any("20260101" in project.read(name) for name in ("zoo.html", "zoo.md", "zoo.zh.md", "zoo.json"))
    page = project.read("zoo.html")
    for kind in ("log", "json"):
        assert page.count(f'<a hidden data-model="row" data-kind="{kind}">ours</a>') == 1
        assert f'data-model="waits" data-kind="{kind}">ours' not in page


def test_page_loads_nothing_but_its_own_links(project):
    project.evaluated("row")
    project.build(row())
    page = Page(project.read("zoo.html"))
    assert not {"link", "iframe", "object"} & page.names
    assert page.scripts == ["", "runs.js"]
    assert "url(" not in project.read("zoo.html") and "@import" not in project.read("zoo.html")


TRAIN_CURVE = """epoch,lr,loss,top1,top5
1,0.1,3.5,0.25,0.5
2,0.1,nan,0.5,0.75
3,0.1,1.5,0.75,1.0
"""
VAL_CURVE = """epoch,top1,top5,mean_class
1,0.2,0.5,0.2
3,0.6,1.0,0.6
"""


def test_curves_are_drawn_through_every_finite_value(project):
    project.write("plots/demo/loss/row/loss.csv", TRAIN_CURVE)
    project.write("plots/demo/top1/row/top1.csv", VAL_CURVE)
    project.build(row(), row("waits"))
    text = project.read("zoo.html")
    assert text.count("<svg") == 2  # loss and top1 of the row that ran
    loss, top1 = text.split("<svg")[1:]

    def points(part, split):
        return part.split(f'<polyline class="{split}" points="')[1].split('"')[0].split()

    # 360 x 180 with the axes from x 34 to 350 and y 158 to 24; the loss's axis ends at 4
    assert points(loss, "train") == ["34.0,40.8", "350.0,107.8"]
    assert 'class="val"' not in loss
    assert points(top1, "train") == ["34.0,124.5", "192.0,91.0", "350.0,57.5"]
    assert points(top1, "val") == ["34.0,131.2", "350.0,77.6"]


BENCHMARK = {
    "videos_per_second": 12.345,
    "end_to_end_videos_per_second": 4.5,
    "frames": "(32+4)x10x3 frames",
    "device": "H200",
    "precision": "bf16",
    "train_memory_mb": 2345.6,
    "test_memory_mb": 456.7,
    "memory_of": "tensors",
    "memory_reason": "",
}


def test_benchmark_stands_beside_the_published_speed_and_memory(project):
    project.write("runs/demo/row/benchmark.json", json.dumps(BENCHMARK))
    project.build(row())
    assert Page(project.read("zoo.html")).row("row")[9:13] == [
        *("1.6 ((32+4)x10x3 frames)", "12.35 ((32+4)x10x3 frames) H200, bf16 4.50 with decoding"),
        *("6203", "2346 457 in evaluation"),
    ]
    (cells,) = markdown_rows(project.read("zoo.md"))[2:]
    assert cells[10] == "**12.35** ((32+4)x10x3 frames); H200, bf16; 4.50 with decoding"


def test_a_speed_with_decoding_above_the_networks_alone_is_called_what_it_is(project):
    impossible = BENCHMARK | {"videos_per_second": 2.93, "end_to_end_videos_per_second": 3.77}
    project.write("runs/demo/row/benchmark.json", json.dumps(impossible))
    report = project.build(row(), row("waits"))
    assert "3.77 with decoding machine was busy" in Page(project.read("zoo.html")).row("row")[10]
    assert "3.77 with decoding; machine was busy" in markdown_rows(project.read("zoo.md"))[2][10]
    assert "测速时机器正忙" in markdown_rows(project.read("zoo.zh.md"))[2][10]
    assert "The machine was busy while the speed of 1 of 2 models was measured" in project.read("zoo.md")
    assert "machine was busy" in " ".join(shown(report, 200).split())
    assert [line["machine_was_busy"] for line in json.loads(project.read("zoo.json"))["rows"]] == [True, False]


def test_quartiles_of_both_speeds_and_a_machine_that_was_busy_stand_in_the_cell(project):
    spread = {
        "videos_per_second_quartiles": [11.5, 13.25],
        "end_to_end_quartiles": [4.25, 5.0],
        "machine_was_busy": True,
    }
    project.write("runs/demo/row/benchmark.json", json.dumps(BENCHMARK | spread))
    project.build(row())
    (cells,) = markdown_rows(project.read("zoo.md"))[2:]
    assert cells[10] == (
        "**12.35** (11.50–13.25); ((32+4)x10x3 frames); H200, bf16; 4.50 (4.25–5.00) with decoding; machine was busy"
    )


def test_memory_of_a_cpu_is_called_what_it_is_and_one_that_was_not_had_says_why(project):
    made = BENCHMARK | {"device": "cpu (x86_64)", "precision": "fp32", "memory_of": "process"}
    project.write("runs/demo/row/benchmark.json", json.dumps(made))
    project.build(row())
    assert Page(project.read("zoo.html")).row("row")[12] == "2346 457 in evaluation of a process on a CPU"
    made |= {"train_memory_mb": None, "test_memory_mb": None, "memory_reason": "it does not fit"}
    project.write("runs/demo/row/benchmark.json", json.dumps(made))
    project.build(row())
    assert Page(project.read("zoo.html")).row("row")[12] == "it does not fit"


@pytest.mark.parametrize(
    ("overrides", "speed", "memory"),
    [
        (["schedule.epochs: 256 -> 10"], "**12.35**", "**2346**"),
        (["test.crop_size: 256 -> 44"], "**12.35**‡", "**2346**‡"),
        (["optim.videos_per_gpu: 4 -> 8"], "**12.35**", "**2346**‡"),
        (["augment.resize: 256 -> 44"], "**12.35**‡", "**2346**"),
    ],
)
def test_the_very_cell_says_what_was_changed(project, overrides, speed, memory):
    project.evaluated("row", "kinetics400", clips=19_404)
    project.write("runs/kinetics400/row/benchmark.json", json.dumps(BENCHMARK))
    project.build(row(overrides=overrides), dataset="kinetics400")
    (cells,) = markdown_rows(project.read("zoo.md"))[2:]
    assert cells[6].startswith("**81.25**‡ ") and cells[8].startswith("**100.00**‡ ")
    assert cells[10].startswith(f"{speed} ") and cells[12].startswith(f"{memory} ")
    assert "changed" in Page(project.read("zoo.html")).row("row")[6]


def test_each_mark_is_explained_under_its_table(project):
    project.evaluated("row")
    project.build(row(overrides=["test.crop_size: 256 -> 44"]))
    for name, said in [("zoo.md", "† measured on demo, not on Kinetics-400"), ("zoo.zh.md", "† 在 demo 上测得")]:
        text = project.read(name)
        assert said in text and "**81.25**†‡" in text and "‡ " in text


def test_clips_are_counted_by_state(project):
    states = {
        "videos_256": {"val": {"ok": 1900, "replaced": 2, "short": 1, "missing": 30, "corrupt": 4, "unlisted": 7}}
    }
    project.build(row(), clip_states=states)
    cells = Page(project.read("zoo.html")).row("videos_256")
    assert cells == ["videos_256", "val", "1,937", "1,903", "1,900", "2", "1", "30", "4", "7"]
    assert cells in markdown_rows(project.read("zoo.md"))


VIEWS = [{"views": 1, "top1": 0.25, "top5": 1.0}, {"views": 2, "top1": 0.5, "top5": 1.0}]


@pytest.fixture
def erring(project):
    err(project)
    return project


def err(project):
    """A row that takes five of seven clips for another class; and whose worst clip has a strip."""
    project.evaluated("row", clips=7)
    scores = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.7, 0.3], [0.95, 0.05], [0.4, 0.6]]
    ids = [f"clip{number}" for number in range(7)]
    test = ClipScores(ids, np.array([0, 0, 0, 1, 1, 1, 1]), np.array(scores), ["<up>", "down"], VIEWS)
    write_error_analysis(test, [], project.folder, RunFiles(project.folder, "demo", "row"), fingerprint="f")
    folder = project.folder / "runs/demo/row/errors"
    facts = json.loads((folder / "errors.json").read_text())
    facts["worst"][0] |= {"strip": "01.jpg", "fault": ""}
    (folder / "errors.json").write_text(json.dumps(facts))
    (folder / "01.jpg").write_bytes(b"a picture")


def test_where_a_row_errs_stands_in_its_part_of_the_page(erring):
    erring.build(row(), row("waits"))
    page = Page(erring.read("zoo.html"))
    assert ["0", "<up>", "3", "1", "33.3", ""] in page.rows and ["1", "down", "4", "1", "25.0", ""] in page.rows
    assert ["down", "<up>", "3", "4"] in page.rows and ["<up>", "down", "2", "3"] in page.rows
    assert "clip5, loss 3.00" in page.text and "the manifest has no usable clip of this id any more" in page.text
    assert f'src="data:image/jpeg;base64,{base64.b64encode(b"a picture").decode()}"' in erring.read("zoo.html")
    assert erring.read("zoo.html").count('class="confusion"') == 1
    assert '<polyline class="top1" points="34.0,124.5 350.0,91.0"/>' in erring.read("zoo.html")
    (worst, *_) = json.loads(erring.read("zoo.json"))["rows"][0]["worst_clips"]
    assert worst["video_id"] == "clip5" and worst["predicted"] == "<up>"


def test_a_strip_that_is_gone_is_named_with_the_next_step(erring):
    (erring.folder / "runs/demo/row/errors/01.jpg").unlink()
    with pytest.raises(UserError, match=r"01\.jpg is missing; delete .*row/errors and run dvc repro evaluate@row"):
        erring.build(row())


def test_same_files_give_the_same_bytes_wherever_the_project_lies(project, tmp_path):
    def build(folder):
        there = Project(folder)
        there.evaluated("row")
        there.write("plots/demo/loss/row/loss.csv", TRAIN_CURVE)
        there.write("plots/demo/top1/row/top1.csv", VAL_CURVE)
        err(there)
        there.write("runs/demo/row/20260101_120000.log", "a log with the time in its name")
        there.build(row(overrides=["a: 1 -> 2"]), row("waits"), clip_states={"videos_256": {"val": {"ok": 1}}})
        return {path.name: path.read_bytes() for path in there.out.iterdir()}

    first, second = build(tmp_path / "here"), build(tmp_path / "over" / "there")
    assert sorted(first) == ["zoo.html", "zoo.json", "zoo.md", "zoo.zh.md"]
    assert first == second
    assert not any(str(tmp_path).encode() in text for text in first.values())


def test_json_holds_what_the_tables_show(project):
    project.evaluated("row")
    project.build(row(), row("waits"))
    ran, waits = json.loads(project.read("zoo.json"))["rows"]
    assert ran["ours"]["top1"] == 0.8125 and ran["published"]["top1"] == [82.76, 82.6]
    assert ran["top1_interval"] == pytest.approx([0.5699, 0.9341], abs=1e-4)
    assert waits["ours"] is None and waits["top1_interval"] is None


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ([], r"metrics is \[\]"),
        ({"top1": 81.25, "top5": 1.0, "clips": 16}, "top1 is 81.25, input should be less"),
        ({"top1": float("nan"), "top5": 1.0, "clips": 16}, "top1 is nan"),
        ({"top1": 0.5, "clips": 16}, "has no top5"),
        ({"top1": 0.5, "top5": 1.0}, "is damaged, it has no metrics.clips"),
        ({"top1": 0.5, "top5": 1.0, "clips": 16, "missing": "two"}, "missing is 'two', input should be"),
        ({"top1": 0.5, "top5": 1.0, "clips": 16, "mean_class": []}, r"mean_class is \[\]"),
    ],
)
def test_metrics_that_cannot_be_used_are_named_with_the_next_step(project, metrics, reason):
    write_result(RunFiles(project.folder, "demo", "row"), metrics)
    with pytest.raises(UserError, match=rf"runs/demo/row/result\.json.*{reason}.*dvc repro evaluate@row"):
        project.build(row())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"videos_per_second": "fast"}, "videos_per_second is 'fast', input should be a valid number"),
        ({"videos_per_second": float("nan")}, "videos_per_second is nan"),
        ({"end_to_end_videos_per_second": [1]}, "end_to_end_videos_per_second is"),
        ({"videos_per_second_quartiles": [1]}, "videos_per_second_quartiles is .* at least 2 items"),
        ({"end_to_end_quartiles": ["a", "b"]}, "end_to_end_quartiles.0 is 'a', input should be a valid number"),
        ({"train_memory_mb": {}}, "train_memory_mb is"),
        ({"device": 3}, "device is 3, input should be a valid string"),
    ],
)
def test_a_benchmark_that_cannot_be_used_is_named_with_the_next_step(project, change, reason):
    project.write("runs/demo/row/benchmark.json", json.dumps(BENCHMARK | change))
    with pytest.raises(UserError, match=rf"row/benchmark\.json: {reason}.*dvc repro benchmark@row"):
        project.build(row())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"top1": ' + "1" * 5000 + "}"])
def test_json_that_no_reader_takes_is_named(project, text):
    project.write("runs/demo/row/benchmark.json", text)
    with pytest.raises(UserError, match=r"benchmark\.json is damaged, it is no JSON"):
        project.build(row())


def test_curves_that_cannot_be_read_are_named_with_their_line(project):
    project.write("plots/demo/loss/row/loss.csv", "epoch,lr,loss,top1,top5\n1,0.1,much,0.5,1.0\n")
    with pytest.raises(UserError, match=r"row/loss\.csv, line 2: .*'much'.*dvc repro train@row"):
        project.build(row())


def shown(report, width):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(report))
    return console.file.getvalue()


def test_terminal_shows_ours_with_interval_the_published_and_why_not_to_compare(project):
    project.evaluated("ran")
    report = project.build(row("ran"), row("[bold]waits", top1=(76.94,)))
    text = shown(report, 100)
    (ran,) = [line for line in text.splitlines() if "ran " in line and "│" in line]
    assert [cell.strip() for cell in ran.strip("│").split("│")] == ["ran", "81.25 (57.0–93.4)", "82.76/82.6", "on demo"]
    assert "[bold]waits" in text and "not run yet" in text and "This is not Kinetics-400" in text


def test_a_narrow_terminal_shows_whole_names_to_copy(project):
    rows = model_entries(load_params(PROJECT / "params.yaml"))
    project.evaluated(rows[0].name)
    report = project.build(*rows)
    for width in (80, 140):
        text = shown(report, width)
        assert all(row.name in text for row in rows) and max(map(len, text.splitlines())) <= width
        assert "81.25 (57.0–93.4)" in text and "77.90" in text and "This is not Kinetics-400" in text
    assert f"{rows[0].name}\n    81.25 (57.0–93.4), published 73.6, on demo\n" in shown(report, 80)


def test_report_needs_neither_torch_nor_mlflow():
    code = "import sys, actionzoo.report.page; sys.exit(bool({'torch', 'mlflow', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


TEXTS = {
    "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb": ("73.6", "91.3"),
    "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb": ("79.0", "94.2"),
    "ircsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": ("76.5", "92.1"),
    "ircsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": ("78.2", "93.0"),
    "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": ("82.76/82.6", "95.68/95.3"),
    "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": ("77.8", "92.8"),
    "ipcsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": ("78.8", "93.5"),
    "ipcsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": ("82.5", "95.3"),
    "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb": ("80.14", "94.93"),
    "slowfast_r50_256p_4x16x1_256e_kinetics400_rgb": ("74.75", "91.73"),
    "slowfast_r50_video_4x16x1_256e_kinetics400_rgb": ("74.34/73.95", "91.58/91.50"),
    "slowfast_r50_4x16x1_256e_kinetics400_rgb": ("75.64", "92.3"),
    "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb": ("75.61", "92.34"),
    "slowfast_r50_8x8x1_256e_kinetics400_rgb": ("76.94", "92.8"),
    "slowfast_r101_r50_4x16x1_256e_kinetics400_rgb": ("76.69", "93.07"),
    "slowfast_r101_8x8x1_256e_kinetics400_rgb": ("77.90", "93.51"),
    "slowfast_r152_r50_4x16x1_256e_kinetics400_rgb": ("77.13", "93.20"),
}


def test_published_numbers_keep_their_text_from_params_yaml_to_every_table(project):
    report = project.build(*model_entries(load_params(PROJECT / "params.yaml")))
    for name in ("zoo.md", "zoo.zh.md"):
        lines = [line for line in markdown_rows(project.read(name)) if line[0].startswith("[")]
        assert {line[0].split("](<")[0][1:].replace("\\", ""): (line[5], line[7]) for line in lines} == TEXTS
    page = Page(project.read("zoo.html"))
    assert {name: (page.row(name)[5], page.row(name)[7]) for name in TEXTS} == TEXTS
    published = {line["name"]: line["published"] for line in json.loads(project.read("zoo.json"))["rows"]}
    assert {name: (values["top1_text"], values["top5_text"]) for name, values in published.items()} == TEXTS
    assert published["slowfast_r101_8x8x1_256e_kinetics400_rgb"]["top1"] == [77.9]
    assert "77.90" in shown(report, 200) and "79.0 " in shown(report, 200)


REFERENCE = PROJECT.parent / "shared" / "reference" / "zoo.json"


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the published pages' cells are not at hand")
def test_published_numbers_are_the_texts_of_the_published_pages():
    entries = {entry["row"]: entry for entry in json.loads(REFERENCE.read_text())["entries"]}
    # one row also shows its later correction
    first = {
        name: tuple(text.split("/")[0] if "_video_" in name else text for text in texts)
        for name, texts in TEXTS.items()
    }
    assert {name: (entry["top1_text"], entry["top5_text"]) for name, entry in entries.items()} == first


def test_remarks_are_chinese_in_the_chinese_table(project):
    rows = model_entries(load_params(PROJECT / "params.yaml"))
    project.build(*rows)
    remarks = project.read("zoo.zh.md").split("## 备注")[1].split("##")[0]
    noted = [row.name for row in rows if row.published.note.zh]
    lines = [line for line in remarks.splitlines() if line.startswith("- ")]
    assert len(lines) == len(noted) > 0
    for line in lines:
        said = line.split(": ", 1)[1]
        assert any("一" <= sign <= "鿿" for sign in said) and " the " not in said and "numbers" not in said, line


def test_a_model_that_other_versions_trained_is_named_below_the_table(project):
    for name, versions in (("old", {"actionzoo": "0.0.9", "torch": "1.0"}), ("new", installed()), ("older", {})):
        record = RunRecord(model=name, dataset="demo", recipe={}, files={}, versions=versions)
        record.write(RunFiles(project.folder, "demo", name).recipe)
    project.build(row("old"), row("new"), row("older"), row("absent"))
    now = f"actionzoo {installed()['actionzoo']}, torch {installed()['torch']}"
    english = f"with other versions than this report was made with ({now}): old with actionzoo 0.0.9, torch 1.0. DVC"
    for name, text in (("zoo.md", english), ("zoo.html", english), ("zoo.zh.md", "old（actionzoo 0.0.9, torch 1.0）")):
        assert text in project.read(name)
    project.build(row("new"))
    assert "other versions" not in project.read("zoo.md")
