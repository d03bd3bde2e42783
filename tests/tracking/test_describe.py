"""What is said of a run folder, before any store comes in."""

import dataclasses

import pytest

from actionzoo.files.hashes import md5_of
from actionzoo.recipe import Percentage, Published, as_dict
from actionzoo.records import FileRecord
from actionzoo.run_files import RunFiles
from actionzoo.tracking.describe import Description, describe
from actionzoo.tracking.titles import display_name, recipe_tags
from tests.small_run import write_result
from tests.tracking.small_training import record_of

PUBLISHED = Published(
    config="row", gpus="8x4", backbone="ResNet50", pretrained="None", top1=(Percentage("79.0"),),
    top5=(Percentage("94.2"),), inference="x", gpu_mem_mb=None, ckpt="https://example.org/a.pth", ckpt_model={},
    infer_ckpt=None, log=None, json=None,
)  # fmt: skip


def described(tmp_path, dataset: str, overrides: tuple[str, ...] = (), clips: int = 19_796) -> Description:
    """A folder with an evaluated training."""
    files = RunFiles(tmp_path, dataset, "row")
    files.run.mkdir(parents=True)
    files.best.write_bytes(b"weights")
    md5 = md5_of(files.best)
    record_of(files, overrides=overrides, files={"best.pth": FileRecord(md5=md5)}).write(files.recipe)
    write_result(files, {"top1": 0.8, "top5": 0.95, "clips": clips, "protocol": "10x3"}, md5)
    description = describe(files, published=PUBLISHED)
    assert description is not None
    return description


def values(description: Description) -> dict[str, float]:
    return {point.name: point.value for point in description.points}


def test_a_comparable_accuracy_has_a_gap(tmp_path):
    found = described(tmp_path, "kinetics400")
    assert values(found)["test/top1_gap"] == pytest.approx(0.01)
    assert values(found)["test/top1_published"] == 0.79
    assert found.tags["comparable"] == "true" and "not_comparable" not in found.tags
    assert "Not comparable" not in found.note and "+1.00 points" in found.note


@pytest.mark.parametrize(
    ("dataset", "overrides", "clips", "why"),
    [
        ("demo", (), 48, "another data set"),
        ("kinetics400", ("schedule.epochs: 256 -> 2",), 19_796, "changed recipe"),
        ("kinetics400", (), 1000, "too few clips"),
        ("demo", ("schedule.epochs: 256 -> 2",), 48, "another data set, changed recipe"),
    ],
)
def test_where_the_report_forbids_the_comparison_the_record_has_no_gap_but_the_reason(
    tmp_path, dataset, overrides, clips, why
):
    found = described(tmp_path, dataset, overrides, clips)
    assert not {"test/top1_gap", "test/top1_published"} & values(found).keys()
    assert (found.tags["comparable"], found.tags["not_comparable"]) == ("false", why)
    assert "**Not comparable with the published accuracy:**" in found.note and "points from" not in found.note


def test_the_description_has_the_published_row_and_the_changes(tmp_path):
    note = described(tmp_path, "demo", ("schedule.epochs: 256 -> 2",)).note
    assert "| 79.0 | 94.2 | ResNet50 |" in note and "[ckpt](<https://example.org/a.pth>)" in note
    assert "- `schedule.epochs: 256 -> 2`" in note and "arxiv.org/abs/1904.02811" in note


def test_no_two_models_of_the_zoo_have_the_same_name(params, tmp_path):
    files = RunFiles(tmp_path, "demo", "row")
    records = {name: record_of(files, recipe=as_dict(recipe)) for name, recipe in params.recipes.items()}
    names = {name: display_name(name, record) for name, record in records.items()}
    assert len(set(names.values())) == len(params.recipes) == 17
    assert names["slowfast_r50_video_4x16x1_256e_kinetics400_rgb"] == "SlowFast R50 4x16 · video · 256"
    ig65m = "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb"
    assert names[ig65m] == "ir-CSN R152 32x2 · IG65M · frames · 320"
    tags = recipe_tags(records[ig65m])
    assert {"family": "csn", "backbone": "ResNet152", "pretrain": "IG65M", "short_side": "320"}.items() <= tags.items()


def test_a_recipe_of_another_version_is_called_by_its_model(tmp_path):
    record = record_of(RunFiles(tmp_path, "demo", "row"), recipe={"model": {"family": "x3d"}})
    assert display_name("row", record) == display_name("row", None) == "row"


def test_a_folder_without_a_training_is_none(tmp_path):
    files = RunFiles(tmp_path, "demo", "row")
    assert describe(files) is None and describe(dataclasses.replace(files, model="other"), "20260101_120000") is None
