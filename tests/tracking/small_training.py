"""A training of four steps, as a stage runs it, and its evaluation: real files and a real record, no network."""

import contextlib
import dataclasses
from collections.abc import Iterator

from actionzoo.engine.logs import RunLog, write_history
from actionzoo.files.hashes import md5_of
from actionzoo.records import Circumstances, FileRecord, RunRecord
from actionzoo.run_files import RunFiles
from actionzoo.tracking.stages import finish_training, recorded_stage, recorded_training
from tests.small_run import write_result

STAMP = "20260101_120000"

TRAIN = {"mode": "train", "lr": 0.1, "data_time": 0.5, "top5_acc": 1.0, "loss_cls": 9.0, "grad_norm": 2.0, "time": 1.0}


def event(step: int, loss: float, epoch: int = 1) -> dict[str, object]:
    return TRAIN | {"epoch": epoch, "iter": step, "top1_acc": 0.25, "loss": loss}


def record_of(run: RunFiles, **changes: object) -> RunRecord:
    recipe = {
        "seed": 0,
        "model": {"family": "csn", "depth": 50, "bottleneck": "ir", "norm_eval": True, "bn_frozen": True},
        "init": {"weights": None},
        "clips": {"form": "videos", "short_side": 256, "clip_len": 32, "frame_interval": 2},
        "optim": {"lr": 0.1},
        "schedule": {"milestones": [1, 2], "epochs": 2, "log_interval": 1},
        "test": {"num_clips": 10, "num_crops": 3, "crop_size": 256},
    }
    known = {"model": run.model, "dataset": run.dataset, "fingerprint": "mine", "recipe": recipe, "files": {}}
    how = Circumstances(
        device="cpu", processes=1, nodes=1, precision="fp32", channels_last=False, compile=False, deterministic=False
    )
    more = {"batch": 8, "lr": 0.05, "circumstances": how, "versions": {"actionzoo": "1", "torch": "2"}}
    more |= {
        "manifest_sha256": "5a" * 32,
        "overrides": ("schedule.epochs: 256 -> 2",),
        "classes": ("a", "b"),
        "train_clips": 80,
        "val_clips": 24,
    }
    return RunRecord(**(known | more | changes))


@contextlib.contextmanager
def training(files: RunFiles, stamp: str = STAMP) -> Iterator[RunLog]:
    """A training as a stage runs it, whose steps are the test's: it gets the log."""
    log = RunLog(files.logs, stamp)
    log.begin({"seed": 0, "iters_per_epoch": 4, "fingerprint": "mine"}, 0)
    record = record_of(files)
    with recorded_training(files, stamp, record, checkpoints="link"):
        yield log
        publish(files, record, log, stamp)


def publish(files: RunFiles, record: RunRecord, log: RunLog, stamp: str = STAMP) -> None:
    """What a training leaves at its end."""
    files.best.write_bytes(b"weights" * (1 << 18))
    files.latest.write_bytes(b"weights of the last epoch")
    for kind, text in (("loss", "epoch,lr,loss,top1,top5\n1,0.1,2.5,0.5,1.0\n"), ("top1", "epoch,top1\n1,0.75\n")):
        files.plot(kind).parent.mkdir(parents=True, exist_ok=True)
        files.plot(kind).write_text(text)
    write_history([log.json_path], files.history)
    known = {path.name: FileRecord(md5=md5_of(path)) for path in (files.best, files.latest)}
    record = dataclasses.replace(record, best_epoch=1, files=known)
    record.write(files.recipe)
    finish_training(files, stamp, record)


def evaluate(files: RunFiles, top1: float = 0.8) -> None:
    """What an evaluation leaves."""
    with recorded_stage(files, "evaluate", md5_of(files.best), "link"):
        metrics = {"top1": top1, "top5": 1.0, "mean_class": 0.7, "clips": 40, "protocol": "10x3"}
        write_result(files, metrics, md5_of(files.best))
        files.errors.mkdir(exist_ok=True)
        (files.errors / "errors.json").write_text("{}")


def train_and_evaluate(files: RunFiles) -> None:
    with training(files) as log:
        for step in (1, 2, 3, 4):
            log.event(event(step, 4.0 / step))
        log.say("Epoch(val) ...")
        log.event({"mode": "val", "epoch": 1, "iter": 8, "lr": 0.1, "top1_acc": 0.75, "top5_acc": 1.0})
    evaluate(files)
