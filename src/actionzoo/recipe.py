"""The types of a recipe: everything that shapes a model's result; and of what was published for the model."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)

Split = Literal["train", "val", "test"]

Positive = Annotated[int, Field(ge=1)]

Count = Annotated[int, Field(ge=0)]

Share = Annotated[float, Field(ge=0, le=1)]

PositiveFloat = Annotated[float, Field(gt=0)]

Rgb = tuple[float, float, float]

Kind = Literal["ckpt", "infer_ckpt"]
"""Of a published file. ckpt: weights that the configuration trained; infer_ckpt: weights imported from VMZ."""


class Percentage(float):
    """Per cent, 0 to 100: a number whose text is the one that it was written with, 77.90 and not 77.9."""

    text: str

    def __new__(cls, written: str | float) -> "Percentage":
        """Raises ValueError."""
        text = str(written)
        is_number = not isinstance(written, bool) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text)
        if not is_number or float(text) > 100:
            raise ValueError('expected a percentage from 0 to 100 as it was published, such as "77.90"')
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SlowFastModel:
    family: Literal["slowfast"]
    slow_depth: Literal[50, 101, 152]
    fast_depth: Literal[50, 101, 152]
    alpha: Positive
    """Frame rate of Fast over Slow; tau, Slow's stride in video frames, is alpha x frame_interval."""
    beta: Annotated[float, Field(gt=0, le=1)]
    """Channels of Fast over Slow, 1/8 in the paper."""
    fusion_kernel: Positive
    """Temporal extent of the lateral convolutions."""
    dropout: Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CSNModel:
    family: Literal["csn"]
    depth: Literal[50, 152]
    bottleneck: Literal["ir", "ip"]
    """Interaction-reduced or interaction-preserved bottleneck (CSN paper, section 3)."""
    norm_eval: bool
    """BN uses its running statistics in training too."""
    bn_frozen: bool
    """With norm_eval: BN's weight and bias do not train either."""
    dropout: Share


Model = Annotated[SlowFastModel | CSNModel, Field(discriminator="family")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Init:
    weights: str | None
    """What training starts from, backbone and, where the classes are as many, head: a URL, a file, or a row of the zoo,
    which means its published checkpoint; null: random weights."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)]
    """Of the backbone's five (stem, layer1 ... layer4), how many stay as they are."""
    backbone_lr: PositiveFloat
    """Learning rate of the backbone over the head's."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Clips:
    form: Literal["videos", "frames"]
    """What the row is stored as; a property of the data on disk, like short_side."""
    short_side: Literal[256, 320]
    clip_len: Positive
    """Frames of a clip."""
    frame_interval: Positive
    """Video frames from one clip frame to the next."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Augment:
    resize: Positive
    """Short side in pixels that every clip gets before it is cropped."""
    crop_size: Positive
    area: tuple[PositiveFloat, PositiveFloat]
    """Share of the frame that a random crop covers, uniform."""
    aspect_ratio: tuple[PositiveFloat, PositiveFloat]
    """Width over height of a random crop, log-uniform."""
    flip: Share
    """Probability of a horizontal flip."""
    mean: Rgb
    """RGB, on 0..255."""
    std: Rgb


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optim:
    lr: PositiveFloat
    """For the reference batch of gpus x videos_per_gpu."""
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat
    """L2 norm over all gradients above which they are scaled down."""
    gpus: Positive
    videos_per_gpu: Positive
    """Clips of a batch: what batch norm sees, and with gpus the reference batch."""
    batch_norm: Literal["local", "sync", "ghost"]
    """Clips whose statistics batch norm uses: those of a process' batch, of all processes' batches, or as many at a
    time as videos_per_gpu of the recipe as written."""
    accumulate: Positive
    """Batches whose gradients make one step."""
    scale_lr: bool
    """Scale lr linearly from the reference batch to the batch really used (arXiv 1706.02677)."""
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay, per step, of averaged weights; they are what is validated and kept. 0: none."""

    @property
    def reference_batch(self) -> int:
        return self.gpus * self.videos_per_gpu


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CosineSchedule:
    policy: Literal["cosine"]
    min_lr: Annotated[float, Field(ge=0)]
    warmup_epochs: Count
    warmup_ratio: Share
    """Share of the learning rate that warm-up starts from."""
    epochs: Positive
    val_interval: Positive
    """Epochs from one validation to the next."""
    checkpoint_interval: Positive
    """Epochs from one resumable state to the next."""
    log_interval: Positive
    """Steps from one log line to the next."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StepSchedule:
    policy: Literal["step"]
    milestones: tuple[Positive, ...]
    """Finished epochs after which lr is multiplied by gamma."""
    gamma: PositiveFloat
    warmup_epochs: Count
    warmup_ratio: Share
    epochs: Positive
    val_interval: Positive
    checkpoint_interval: Positive
    log_interval: Positive


Schedule = Annotated[CosineSchedule | StepSchedule, Field(discriminator="policy")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Test:
    num_clips: Positive
    num_crops: Literal[1, 3]
    """Square crops side by side along the longer side; 1 = the centre."""
    crop_size: Positive
    average_clips: Literal["prob", "score"]
    """What is averaged over the views: probabilities or raw scores."""

    @property
    def protocol(self) -> str:
        return f"{self.num_clips}x{self.num_crops}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """Everything that shapes a model's result: an entry under `recipes` in params.yaml."""

    seed: Count
    model: Model
    init: Init
    clips: Clips
    augment: Augment
    optim: Optim
    schedule: Schedule
    test: Test

    @property
    def test_spec(self) -> "TestSpec":
        """How the network looks at a video when it is evaluated."""
        clips, augment, test = self.clips, self.augment, self.test
        return TestSpec(
            form=clips.form,
            short_side=clips.short_side,
            clip_len=clips.clip_len,
            frame_interval=clips.frame_interval,
            resize=augment.resize,
            mean=augment.mean,
            std=augment.std,
            num_clips=test.num_clips,
            num_crops=test.num_crops,
            crop_size=test.crop_size,
            average_clips=test.average_clips,
        )

    @property
    def validation_spec(self) -> "TestSpec":
        """The validation of a training: one view, the centre crop of the centred clip at augment.crop_size."""
        return dataclasses.replace(self.test_spec, num_clips=1, num_crops=1, crop_size=self.augment.crop_size)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore", strict=True))
class TestSpec:
    """How a network looks at a video: what of a recipe outlives its training. Fields as in Clips, Augment and Test."""

    __test__ = False  # pytest takes classes called Test… for tests

    form: Literal["videos", "frames"]
    short_side: Positive
    clip_len: Positive
    frame_interval: Positive
    resize: Positive
    mean: Rgb
    std: Rgb
    num_clips: Positive
    num_crops: Literal[1, 3]
    crop_size: Positive
    average_clips: Literal["prob", "score"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Note:
    """A remark on a published model."""

    en: str = ""
    zh: str = ""

    def text(self, language: Literal["en", "zh"]) -> str:
        """The remark in that language; in English where there is no Chinese."""
        return (self.zh if language == "zh" else "") or self.en


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Published:
    """What was published for a model, as its table prints it: an entry of published.yaml."""

    config: str
    gpus: str
    """A x B: A GPUs on each of B machines."""
    backbone: str
    pretrained: str
    top1: tuple[Annotated[Percentage, PlainValidator(Percentage)], ...]
    """Per cent, each a Percentage. A second value belongs to infer_ckpt, or corrects the first; see note."""
    top5: tuple[Annotated[Percentage, PlainValidator(Percentage)], ...]
    inference: str
    """Videos per second, and the frames of all views."""
    gpu_mem_mb: int | None
    """Of one GPU during training; None where the table does not say."""
    ckpt: str | None
    ckpt_model: dict[str, Any]
    """Keys of the recipe's `model` whose values differ in the network of ckpt."""
    infer_ckpt: str | None
    """Weights imported from VMZ rather than trained. Beside a ckpt, the second numbers are theirs."""
    log: str | None
    json: str | None
    note: Note = Note()

    @property
    def released(self) -> dict[Kind, tuple[str, Percentage, Percentage]]:
        """The published files, `ckpt` and `infer_ckpt`: address, top1 and top5 of that very file, in per cent.

        With one file, a second number corrects the first; with two, it belongs to infer_ckpt.
        """
        addresses: dict[Kind, str | None] = {"ckpt": self.ckpt, "infer_ckpt": self.infer_ckpt}
        there = {kind: address for kind, address in addresses.items() if address}
        which: dict[Kind, int] = {"ckpt": 0 if len(there) == 2 else -1, "infer_ckpt": -1}
        return {kind: (address, self.top1[which[kind]], self.top5[which[kind]]) for kind, address in there.items()}


def as_dict(section: Any) -> dict[str, Any]:
    """A recipe, or a section of one, as plain dicts and lists, in the order of its fields."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(section)))
    return plain


def compare(a: Recipe, b: Recipe) -> list[str]:
    """The values that differ, as lines such as `optim.lr: 0.1 -> 0.05`; empty for equal recipes."""
    return differences(as_dict(a), as_dict(b))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The values that differ between two mappings of plain values, as lines such as `optim.lr: 0.1 -> 0.05`.

    A key that one of them lacks counts as null there. `prefix` goes before each key.
    """
    lines = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {_plain(old)} -> {_plain(new)}")
    return lines


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
