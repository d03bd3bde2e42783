"""What a run leaves behind, as frozen types: one reader and one writer for each file.

    runs/<dataset>/<model>/recipe.json        RunRecord    a training: what shaped it, and what came of it
    runs/<dataset>/<model>/result.json        TestResult   an evaluation; after its metadata, the clips' scores
    runs/<dataset>/<model>/benchmark.json     Benchmark    speed, memory and size on one machine
    runs/<dataset>/<model>/<time>.run.json    Execution    who ran a training, when, where and from which commit
    reproduction/results/<dataset>/<model>/reproduction.json
                                                     Reproduction published weights: measured beside published

Execution is no output of a stage: outputs hold no clock time and no id, so that equal work gives equal files.

The `table` of each of the first three is the short form that `dvc metrics show` prints, in metrics/<dataset>/.

`read` raises UserError for a file that is absent or damaged, and the error says how to rebuild it; `read_if_there`
returns None for an absent file, and for an absent file alone. Files of the version before are read. A file of a newer
version is refused.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import UserError
from .files.atomic import atomic_write
from .files.json_files import require_json, write_json
from .files.text import read_line
from .metric_keys import is_accuracy, wilson_interval, with_protocol

FORMAT_VERSION = 2
"""Of all files of this module. Version 1 has no format_version, and other names for the keys in _RENAMED."""

Json = dict[str, JsonValue]
"""A JSON object."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = FiniteFloat
Range = Annotated[tuple[Number, ...], Field(min_length=2, max_length=2)]

_RENAMED = {"row": "model", "beside_fp32": "fp32_comparison"}
_SETTINGS = ConfigDict(extra="ignore", strict=True)


class Record:
    """A file of a run. Subclasses are frozen dataclasses whose fields are the file's keys."""

    remedy: ClassVar[str]
    """How the file is rebuilt; {path} and {model} are filled in."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError if the file is absent, damaged, or of a newer version."""
        return cls.from_json(require_json(path, cls.rebuild(path)), path)

    @classmethod
    def read_if_there(cls, path: Path) -> Self | None:
        """None if there is no such file. Raises UserError as `read` does."""
        return cls.read(path) if path.exists() else None

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> Self:
        """The record that a JSON object holds; `path` is for the error. Raises UserError."""
        remedy = cls.rebuild(path)
        plain = {_RENAMED.get(key, key): value for key, value in content.items()}
        version = plain.pop("format_version", 1)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {version!r}, and this actionzoo reads up to {FORMAT_VERSION}. Update "
                f"actionzoo, or {remedy}"
            )
        try:
            return TypeAdapter(cls).validate_json(
                json.dumps(cls.unfold(plain))
            )  # JSON: strict, and lists become tuples
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(str(part) for part in fault["loc"] if part != "accuracies")
            if fault["type"] == "json_invalid":  # half a surrogate pair
                raise UserError(f"{path} is damaged, it holds text that is no Unicode; {remedy}") from None
            if fault["type"].startswith("missing"):
                raise UserError(f"{path} is damaged, it has no {key}; {remedy}") from None
            raise UserError(
                f"{path}: {key} is {repr(fault['input'])[:80]}, {_uncapitalised(fault['msg'])}; {remedy}"
            ) from None

    @classmethod
    def unfold(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """From the file's keys to the fields, where they differ."""
        return plain

    @classmethod
    def rebuild(cls, path: Path) -> str:
        """A clause for errors: what makes the file anew."""
        is_run = path.name in ("recipe.json", "result.json", "benchmark.json") or path.name.endswith(".run.json")
        model = path.parent.name if is_run else path.stem
        return cls.remedy.format(path=path, model=model)

    def as_json(self) -> Json:
        """The file's object. Fields that are None are left out."""
        return {"format_version": FORMAT_VERSION} | _plain(self)

    def write(self, path: Path) -> None:
        write_json(path, self.as_json())


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class FileRecord:
    md5: str
    size: Count | None = None
    """Bytes."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Circumstances:
    """How a training ran: what is not part of its recipe, and makes no training another one."""

    device: str
    """cuda or cpu."""
    processes: Count
    """One per GPU, or so many on CPUs; over all machines."""
    nodes: Count
    """Machines."""
    precision: str
    channels_last: bool
    compile: bool
    deterministic: bool
    device_name: str = ""
    """As its driver calls it; '' in records of older versions."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class RunRecord(Record):
    """recipe.json. It is written last, so that it vouches for the files beside it."""

    remedy: ClassVar[str] = "restore it (`dvc checkout {path}`), or delete it and run `dvc repro train@{model}`"

    model: str
    dataset: str
    fingerprint: str = ""
    """Job.training_fingerprint; '' in records of other programs."""
    manifest_sha256: str = ""
    """The hash of the manifest.csv that the training read."""
    recipe: Json
    """The recipe as used, overrides applied, in plain values: another version may have had other knobs."""
    overrides: tuple[str, ...] = ()
    """What the data set changed of the recipe: `schedule.epochs: 256 -> 10`."""
    batch: Count = 0
    """Clips of one optimizer step, over all processes."""
    reference_batch: Count = 0
    """Clips of the batch that the recipe's learning rate was made for."""
    lr: Number = 0.0
    """Learning rate after warm-up."""
    circumstances: Circumstances | None = None
    """At the end of the training, as the next two; None in records of older versions."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """actionzoo and torch."""
    init_sha256: str = ""
    """Of the file behind init.weights that the training started from; '' if it started from random weights."""
    classes: tuple[str, ...] = ()
    """Class names by label."""
    train_clips: Count = 0
    val_clips: Count = 0
    best_epoch: Count = 0
    best_val_top1: Share = 0.0
    undecodable: tuple[str, ...] = ()
    """A sentence for each clip that did not decode."""
    files: dict[str, FileRecord]
    """Base name -> the file that this record vouches for."""

    @property
    def epochs(self) -> JsonValue:
        schedule = self.recipe.get("schedule")
        return schedule.get("epochs") if isinstance(schedule, dict) else None

    @property
    def log_mark(self) -> str:
        """What the training's logs carry in their first line: the fingerprint; '' for version 0.1, whose carry none."""
        return self.fingerprint if self.versions else ""

    def table(self, loss: float) -> Json:
        """For metrics/<dataset>/train/. `loss` is the training loss of the last epoch."""
        return {
            "loss": round(loss, 4),
            "val_top1": round(self.best_val_top1, 4),
            "epochs": self.epochs,
        }

    def summary(self) -> str:
        return f"{self.model}: val top-1 {self.best_val_top1:.4f} at epoch {self.best_epoch} of {self.epochs}"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class FlowRun:
    """A run of a Prefect flow."""

    id: str
    name: str = ""
    url: str = ""
    """Of its page; '' where no server has one."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Session:
    """A process that worked on a training, or on what came of it."""

    stage: str
    """train, evaluate or benchmark."""
    began: Count
    """Milliseconds since 1970."""
    host: str
    boot: str = ""
    """Changes when the host boots; '' where the system does not say."""
    pid: Count
    started: Count = 0
    """When the process started, in clock ticks since boot: pids are reused, pids with this number are not."""
    user: str = ""
    flow_run: FlowRun | None = None
    """The flow run that started the stage."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Execution(Record):
    """<time>.run.json: how a training was run. The first process of the training writes it."""

    remedy: ClassVar[str] = "delete it: only who ran a training, when and from which commit is forgotten"

    model: str
    dataset: str
    status: Literal["running", "finished", "failed", "killed"]
    """A process that was killed by force leaves `running` behind."""
    error: str = ""
    """Why it failed, in one line."""
    began: Count
    """Milliseconds since 1970, as the next one."""
    ended: Count | None = None
    sessions: tuple[Session, ...] = ()
    """The first one trained; a resumed training and each evaluation add theirs."""
    git_commit: str = ""
    """'' outside of a repository, or without Git."""
    git_dirty: bool = False
    """Whether files that Git tracks differed from the commit; dvc.lock does not count."""
    record: Json | None = None
    """The RunRecord as the training began, for one that does not finish; None if it was trained elsewhere."""
    checkpoint_md5: str = ""
    """Of the finished training's best.pth."""
    mlflow_run: str = ""
    """Id of the MLflow run that the version before began for this training."""

    @property
    def flow_runs(self) -> tuple[FlowRun, ...]:
        """Each once, the latest last."""
        found = {session.flow_run.id: session.flow_run for session in self.sessions if session.flow_run}
        return tuple(found.values())


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Metrics(Record):
    """Accuracies of one evaluation, and what they are accuracies of: a part of TestResult and ReproducedFile."""

    remedy: ClassVar[str] = "delete it and run `dvc repro evaluate@{model}`"

    accuracies: dict[str, Share]
    """top1, top5 (or another k) and mean_class, as shares of 1; empty where clips have no labels."""
    clips: Annotated[int, Field(ge=1, lt=2**63)]
    """Evaluated."""
    missing: Count = 0
    """Listed, and not usable."""
    undecodable: Count = 0
    """Usable, and not decodable when they were evaluated."""
    listed: Count | None = None
    """On the list: all of the above."""
    protocol: str = "unknown"
    """Clips x crops of a video, such as 10x3."""
    precision: str = ""
    list_sha256: str = ""
    """Accuracies are comparable only if these are equal."""
    published_list_sha256: str | None = None
    """The hash of the published list's file, if one was given."""
    other_frames: Count | None = None
    """With a published list: clips that have another number of frames here than in the list."""
    other_label: Count | None = None
    """With a published list: clips that have another label here than in the list."""
    epoch: Count | None = None
    """Of the checkpoint, if its training says so."""

    @classmethod
    def unfold(cls, plain: dict[str, Any]) -> dict[str, Any]:
        return {"accuracies": {key: plain[key] for key in plain if is_accuracy(key)}} | {
            key: value for key, value in plain.items() if not is_accuracy(key)
        }

    @property
    def top1(self) -> float | None:
        return self.accuracies.get("top1")

    @property
    def top5(self) -> float | None:
        return self.accuracies.get("top5")

    @property
    def mean_class(self) -> float | None:
        return self.accuracies.get("mean_class")

    @property
    def num_listed(self) -> int:
        """Clips of the list, those that could not be evaluated included."""
        return self.listed or self.clips + self.missing + self.undecodable

    @property
    def num_gone(self) -> int:
        return self.missing + self.undecodable

    def interval(self, name: str = "top1") -> tuple[float, float]:
        """95 % interval of an accuracy, from the number of clips alone. Raises KeyError for one that is not there."""
        return wilson_interval(round(self.accuracies[name] * self.clips), self.clips)

    def counts(self) -> Json:
        """All keys of the file but those that say of which views an accuracy is, in the file's order."""
        plain = _plain(self)
        epoch = {key: plain.pop(key) for key in ("epoch",) if key in plain}
        flat: Json = plain.pop("accuracies") | plain
        if "top1" in self.accuracies:
            low, high = self.interval()
            flat |= {"top1_low": low, "top1_high": high}
        return flat | epoch

    def table(self) -> Json:
        """For metrics/<dataset>/evaluate/."""
        shown: Json = {name: round(value, 4) for name, value in self.accuracies.items() if name != "mean_class"}
        return shown | {"protocol": self.protocol, "clips": self.clips}

    def as_json(self) -> Json:
        """Each accuracy stands there twice, the second time under a name with its protocol: test/top1@10x3."""
        return with_protocol(self.counts())


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Fp32Comparison:
    """How far a precision is from fp32, over the first clips of an evaluation."""

    clips: Count
    largest_probability_difference: Number
    top1_changes: Count
    """Clips whose best class differs."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class PublishedListRecord:
    """What differs here from the published list that was evaluated."""

    sha256: str
    label_map_sha256: str
    missing: tuple[str, ...]
    """A sentence for each clip, as in the next two."""
    other_frames: tuple[str, ...]
    other_label: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class TestResult(Record):
    """result.json, except its clips: what was evaluated, how, and the metrics."""

    remedy: ClassVar[str] = "delete it and run `dvc repro evaluate@{model}`"
    __test__: ClassVar[bool] = False  # no test case of pytest

    model: str
    dataset: str
    fingerprint: str = ""
    """Equal for evaluations that give the same; '' for a checkpoint of one's own."""
    checkpoint_md5: str
    file: str | None = None
    """Base name of the checkpoint, where it is not the run's best.pth."""
    sha256: str | None = None
    settings: tuple[str, ...] | None = None
    """What the checkpoint's own recipe changed: `clips.clip_len: 32 -> 64`."""
    split: str
    protocol: str
    average_clips: str
    """prob, score or none: what was averaged over the views."""
    precision: str = ""
    published_list: PublishedListRecord | None = None
    fp32_comparison: Fp32Comparison | None = None
    metrics: Metrics
    undecodable: tuple[str, ...] = ()
    """A sentence for each clip that did not decode."""
    classes: tuple[str, ...] | None = None
    """Class names by output."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The metadata alone: the scores of 20,000 clips are not parsed. Raises UserError as Record.read does."""
        remedy = cls.rebuild(path)
        text = read_line(path, remedy)
        try:
            content = json.loads(f"{text}}}}}")
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("clips"), dict):
            raise UserError(f"{path} is damaged, its first line is not that of an evaluation's result; {remedy}")
        return cls.from_json(content, path)

    @classmethod
    def unfold(cls, plain: dict[str, Any]) -> dict[str, Any]:
        metrics = plain.get("metrics")
        return plain | {"metrics": Metrics.unfold(metrics)} if isinstance(metrics, dict) else plain

    def as_json(self) -> Json:
        return super().as_json() | {"metrics": self.metrics.counts()}

    def write_with_clips(self, path: Path, clips: Iterable[tuple[str, int, JsonValue]]) -> None:
        """Write one JSON object: its first line has all of this, then follow the clips, a line each.

        `clips` are (video_id, label, scores); scores are a list by class, or with average_clips none a list of these
        for every view.
        """
        with atomic_write(path) as file:
            file.write(f'{json.dumps(self.as_json(), ensure_ascii=False)[:-1]}, "clips": {{\n'.encode())
            for line in _with_commas(clips):
                file.write(line.encode())
            file.write(b"}}\n")

    def summary(self) -> str:
        """The accuracies, and what they are accuracies of, in a line."""
        metrics = self.metrics
        names = {key: "mean class" if key == "mean_class" else f"top-{key[3:]}" for key in metrics.accuracies}
        bounds = {"top1": " (95 %: {:.4f}-{:.4f})".format(*metrics.interval())} if metrics.top1 is not None else {}
        accuracies = ", ".join(
            f"{name} {metrics.accuracies[key]:.4f}{bounds.get(key, '')}" for key, name in names.items()
        )
        return (
            f"{self.model}: {accuracies or 'no accuracy'} ({self.protocol} views, {metrics.clips} of "
            f"{metrics.num_listed} listed clips, {metrics.num_gone} missing or undecodable)"
        )


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Benchmark(Record):
    """benchmark.json. Files of older versions lack some of it."""

    remedy: ClassVar[str] = "delete it and run `dvc repro benchmark@{model}`"

    videos_per_second: Number | None = None
    """The network alone, all views of a video: the median."""
    videos_per_second_quartiles: Range | None = None
    """First and third."""
    seconds_per_video: tuple[Number, ...] = ()
    """Each that was measured."""
    end_to_end_videos_per_second: Number | None = None
    """With decoding."""
    end_to_end_quartiles: Range | None = None
    end_to_end_seconds_per_video: tuple[Number, ...] = ()
    end_to_end_clips: Count = 0
    machine_was_busy: bool = False
    """Other work disturbed the measurement."""
    workers: Count | None = None
    """Decoding processes; None if there were no clips to decode."""
    frames: str = ""
    """Frames of all views, as the published table counts them: (32+4)x10x3 frames."""
    views: Count = 0
    """Of a video."""
    crop_size: Count = 0
    """Pixels."""
    test_memory_mb: Number | None = None
    train_memory_mb: Number | None = None
    memory_of: str = "process"
    """tensors (on a GPU) or process."""
    memory_reason: str = ""
    """Why a memory is unknown."""
    parameters: Count | None = None
    macs_per_view: Count | None = None
    """Multiply-adds."""
    device: str = ""
    threads: Count = 0
    torch: str = ""
    precision: str = ""
    channels_last: bool = False
    compile: bool = False
    max_views: Count = 0
    fingerprint: str = ""

    @property
    def is_disturbed(self) -> bool:
        """It says so, or its speed with decoding is above that of the network alone, which cannot be."""
        alone, with_decoding = self.videos_per_second, self.end_to_end_videos_per_second
        return self.machine_was_busy or (alone is not None and with_decoding is not None and with_decoding > alone)

    def table(self) -> Json:
        """For metrics/<dataset>/benchmark/; unknown values are left out."""
        values = {
            "videos_per_second": _rounded(self.videos_per_second, 2),
            "train_memory_mb": _rounded(self.train_memory_mb, 0),
        }
        return {name: value for name, value in values.items() if value is not None}

    def as_json(self) -> Json:
        """Every key, also those whose value is unknown; no format_version."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ReproducedFile:
    """One published file, measured here."""

    metrics: Metrics
    published_top1: Number
    """Per cent, as the next one."""
    published_top5: Number
    verdict: str
    """reproduced, not reproduced, or different data."""
    why: str
    file: str
    sha256: str

    def __post_init__(self) -> None:
        """Raises ValueError, which reading turns into a UserError."""
        if not {"top1", "top5"} <= self.metrics.accuracies.keys():
            raise ValueError("a published file is compared by top1 and top5, and one is not there")

    def as_json(self) -> Json:
        bounds: dict[str, float] = {}
        for name in ("top1", "top5"):
            bounds[f"{name}_low"], bounds[f"{name}_high"] = self.metrics.interval(name)
        others = {key: value for key, value in _plain(self).items() if key != "metrics"}
        return self.metrics.counts() | bounds | others


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Reproduction(Record):
    """reproduction/results/<dataset>/<model>/reproduction.json."""

    remedy: ClassVar[str] = "delete it and run `dvc --cd reproduction repro evaluate@{model}`"

    files: dict[str, ReproducedFile]
    """Kind of the published file, ckpt or infer_ckpt -> what was measured."""

    @classmethod
    def unfold(cls, plain: dict[str, Any]) -> dict[str, Any]:
        def split(made: Any) -> Any:
            return made | {"metrics": Metrics.unfold(made)} if isinstance(made, dict) else made

        return {"files": {kind: split(made) for kind, made in plain.items()}}

    def as_json(self) -> Json:
        return {kind: file.as_json() for kind, file in self.files.items()}

    def table(self) -> Json:
        """A few numbers of each file, for `dvc metrics`."""
        return {
            kind: {
                "top1": file.metrics.accuracies["top1"],
                "top5": file.metrics.accuracies["top5"],
                "published_top1": file.published_top1 / 100,
                "protocol": file.metrics.protocol,
                "verdict": file.verdict,
            }
            for kind, file in self.files.items()
        }


def _plain(record: Any) -> dict[str, Any]:
    """A dataclass's fields as plain values, those that are None left out; plain values in it stay as they are."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return _plain(value)
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: plain(value) for name, value in values.items() if value is not None}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits) if digits else round(value)


def _with_commas(clips: Iterable[tuple[str, int, JsonValue]]) -> Iterator[str]:
    before = ""
    for video_id, label, scores in clips:
        if before:
            yield f"{before},\n"
        before = f"{json.dumps(video_id, ensure_ascii=False)}: {json.dumps({'label': label, 'scores': scores})}"
    if before:
        yield f"{before}\n"


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]
