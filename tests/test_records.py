import dataclasses
import json
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.records import (
    FORMAT_VERSION,
    Benchmark,
    FileRecord,
    Fp32Comparison,
    Metrics,
    Reproduction,
    RunRecord,
    TestResult,
)

METRICS = Metrics(
    accuracies={"top1": 0.5, "top5": 1.0, "mean_class": 0.25},
    clips=12,
    missing=1,
    undecodable=2,
    listed=15,
    protocol="10x3",
    precision="bf16",
    list_sha256="ab",
    epoch=3,
)
RUN = RunRecord(
    model="slowfast",
    dataset="demo",
    fingerprint="f",
    manifest_sha256="cd",
    recipe={"init": {"weights": None}, "schedule": {"epochs": 6}},
    overrides=("schedule.epochs: 256 -> 6",),
    batch=8,
    reference_batch=64,
    lr=0.0125,
    classes=("clap", "run"),
    train_clips=80,
    val_clips=24,
    best_epoch=5,
    best_val_top1=0.75,
    files={"best.pth": FileRecord(md5="ef", size=10)},
)
RESULT = TestResult(
    model="slowfast",
    dataset="demo",
    fingerprint="f",
    checkpoint_md5="ef",
    split="val",
    protocol="10x3",
    average_clips="prob",
    precision="bf16",
    fp32_comparison=Fp32Comparison(clips=8, largest_probability_difference=0.001, top1_changes=0),
    metrics=METRICS,
    undecodable=("v_000000_000010 hung",),
    classes=("clap", "run"),
)
BENCHMARK = Benchmark(videos_per_second=2.0, videos_per_second_quartiles=(1.5, 2.5), views=30, parameters=34_000_000)


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "runs" / "demo" / "slowfast"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def metrics(tmp_path) -> Path:
    folder = tmp_path / "metrics" / "demo"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("record", "name"),
    [(RUN, "recipe.json"), (METRICS, "slowfast.json"), (BENCHMARK, "slowfast.benchmark.json")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_is_read_as_it_was_written(record, name, tmp_path):
    record.write(tmp_path / name)
    assert type(record).read(tmp_path / name) == record


def test_a_result_is_read_without_its_clips(run):
    path = run / "result.json"
    RESULT.write_with_clips(path, [("a", 0, [0.9, 0.1]), ("b", 1, [0.2, 0.8])])
    assert TestResult.read(path) == RESULT
    assert json.loads(path.read_text())["clips"] == {
        "a": {"label": 0, "scores": [0.9, 0.1]},
        "b": {"label": 1, "scores": [0.2, 0.8]},
    }
    assert path.read_text().count("\n") == 4  # metadata, two clips, the end


def test_null_in_a_recipe_stays(run):
    RUN.write(run / "recipe.json")
    assert json.loads((run / "recipe.json").read_text())["recipe"]["init"] == {"weights": None}


def test_an_unknown_value_of_ours_is_left_out(run):
    dataclasses.replace(RESULT, fp32_comparison=None).write_with_clips(run / "result.json", [])
    assert "fp32_comparison" not in json.loads((run / "result.json").read_text())


def test_metrics_say_each_accuracy_twice_and_the_interval():
    assert list(METRICS.as_json()) == [
        *("top1", "top5", "mean_class", "clips", "missing", "undecodable", "listed", "protocol", "precision"),
        *("list_sha256", "top1_low", "top1_high", "epoch", "test/top1@10x3", "test/top5@10x3", "test/mean_class@10x3"),
    ]


def test_the_summary_says_what_the_accuracy_is_of():
    assert RESULT.summary() == (
        "slowfast: top-1 0.5000 (95 %: 0.2538-0.7462), top-5 1.0000, mean class 0.2500 (10x3 views, 12 of 15 listed "
        "clips, 3 missing or undecodable)"
    )


def test_records_of_the_version_before_are_read(run, metrics):
    """As the first version wrote them: no format_version, `row`, and `beside_fp32`."""
    old = RUN.as_json()
    del old["format_version"]
    old["row"] = old.pop("model")
    (run / "recipe.json").write_text(json.dumps(old))
    assert RunRecord.read(run / "recipe.json") == RUN

    old = RESULT.as_json()
    del old["format_version"]
    old = {"row": old.pop("model"), "beside_fp32": old.pop("fp32_comparison")} | old
    (run / "result.json").write_text(json.dumps(old)[:-1] + ', "clips": {\n"a": {"label": 0, "scores": [1.0]}\n}}\n')
    assert TestResult.read(run / "result.json") == RESULT

    (metrics / "slowfast.benchmark.json").write_text('{"videos_per_second": 2.0, "machine": "of an older key"}')
    assert Benchmark.read(metrics / "slowfast.benchmark.json") == Benchmark(videos_per_second=2.0)


def test_a_record_of_a_newer_version_is_refused(run):
    path = run / "recipe.json"
    path.write_text(json.dumps(RUN.as_json() | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(UserError, match=f"format_version {FORMAT_VERSION + 1}, and this actionzoo reads up to"):
        RunRecord.read(path)


def test_an_absent_file_is_none_and_a_damaged_one_is_not(run):
    path = run / "recipe.json"
    assert RunRecord.read_if_there(path) is None
    path.write_text("")
    with pytest.raises(UserError, match=r"is damaged.*`dvc repro train@slowfast`"):
        RunRecord.read_if_there(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "it is no JSON"),
        ("[]", "no JSON object but a list"),
        ('{"top1": 0.5}', "it has no clips"),
        ('{"top1": 1.5, "clips": 2}', "top1 is 1.5, input should be less than or equal to 1"),
        ('{"top1": NaN, "clips": 2}', "top1 is nan"),
        ('{"top1": "0.5", "clips": 2}', "top1 is '0.5', input should be a valid number"),
        ('{"top1": 0.5, "clips": 0}', "clips is 0, input should be greater than or equal to 1"),
        ('{"top1": 0.5, "clips": true}', "clips is True, input should be a valid integer"),
    ],
)
def test_damaged_metrics_are_told_with_the_key_and_the_way_to_rebuild(metrics, text, says):
    path = metrics / "slow.fast.json"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        Metrics.read(path)
    assert str(path) in str(raised.value) and says in str(raised.value)
    assert str(raised.value).endswith("delete it and run `dvc repro evaluate@slow.fast`")


@pytest.mark.parametrize("cut", [0, 1, 40, 400])
def test_half_a_result_is_damaged(run, cut):
    path = run / "result.json"
    RESULT.write_with_clips(path, [("a", 0, [1.0])])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="delete it and run `dvc repro evaluate@slowfast`"):
        TestResult.read(path)


def test_a_speed_with_decoding_above_the_networks_own_is_disturbed():
    assert not dataclasses.replace(BENCHMARK, end_to_end_videos_per_second=2.0).is_disturbed
    assert dataclasses.replace(BENCHMARK, end_to_end_videos_per_second=2.1).is_disturbed
    assert dataclasses.replace(BENCHMARK, machine_was_busy=True).is_disturbed


def test_a_reproduction_is_flat_by_the_kind_of_the_file(tmp_path):
    content = METRICS.counts() | {
        "published_top1": 76.0,
        "published_top5": 92.0,
        "verdict": "reproduced",
        "why": "+0.1",
    }
    content |= {"file": "a-12345678.pth", "sha256": "12345678"}
    (tmp_path / "slowfast.json").write_text(json.dumps({"ckpt": content}))
    made = Reproduction.read(tmp_path / "slowfast.json")
    assert made.files["ckpt"].metrics == METRICS
    assert content.items() <= made.as_json()["ckpt"].items()


def test_a_reproduction_without_top1_is_damaged(tmp_path):
    path = tmp_path / "slowfast.json"
    content = METRICS.counts() | {"published_top1": 76.0, "published_top5": 92.0, "verdict": "", "why": ""}
    content |= {"file": "a-12345678.pth", "sha256": "12345678"}
    del content["top1"]
    path.write_text(json.dumps({"ckpt": content}))
    with pytest.raises(UserError, match=r"files\.ckpt is .*top1 and top5, and one is not there; delete it and run"):
        Reproduction.read(path)


@pytest.mark.parametrize("text", ['{"top1": 0.5, "clips": 2, "protocol": "\\ud800"}', '{"\\ud800": 1, "clips": 2}'])
def test_text_that_is_no_unicode_is_damaged_and_can_be_told(metrics, text):
    path = metrics / "slowfast.json"
    path.write_text(text)
    with pytest.raises(UserError, match="it holds text that is no Unicode; delete it and run") as raised:
        Metrics.read(path)
    str(raised.value).encode()
