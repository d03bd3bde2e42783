"""How close our recipes and networks come to the reference. The tests ask for limits; this prints the distances:

python -m tests.models.parity      # the tables of docs/parity.md; needs the reference numbers beside the repository
"""

import math
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actionzoo.engine.flops import count_macs, count_parameters
from actionzoo.engine.schedule import learning_rate, scaled_lr
from actionzoo.engine.views import average_views
from actionzoo.jobs.train import learning_rate_schedule
from actionzoo.recipe import Recipe, as_dict
from actionzoo.zoo import create_model
from tests.models.reference import CONFIGS, PUBLISHED, RECIPES, REFERENCE, build_filled, clips, read_reference

CLIP_256 = (1, 3, 32, 256, 256)  # the published FLOPs are of this size; later tables print 224 beside them

# ----------------------------------------------------------------------------------------------------------- recipes


def reference_entries() -> dict[str, dict[str, Any]]:
    """Row -> what the reference knows of it, in the order of the published pages."""
    return {entry["row"]: entry for entry in read_reference("zoo.json")["entries"]}


def reference_recipe(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row of the reference in the words of params.yaml.

    What only we have is left out: seed, optim.scale_lr, optim.batch_norm and published.note.
    """
    recipe = entry["recipe"]
    pipelines = [recipe["train_pipeline"], recipe["val_pipeline"], recipe["test_pipeline"]]
    training, validation, test = ({step["type"]: step for step in pipeline} for pipeline in pipelines)
    resize, crop = (step["scale"] for step in recipe["train_pipeline"] if step["type"] == "Resize")
    assert resize == validation["Resize"]["scale"] == test["Resize"]["scale"]
    assert crop == [validation["CenterCrop"]["crop_size"]] * 2
    frames = {(s["clip_len"], s["frame_interval"]) for s in (p["SampleFrames"] for p in (training, validation, test))}
    ((clip_len, frame_interval),) = frames
    norms = [pipeline["Normalize"] for pipeline in (training, validation, test)]
    assert norms[0] == norms[1] == norms[2]
    return {
        "model": _reference_model(entry),
        "init": {"weights": entry["init_checkpoint_url"], "frozen_stages": 0, "backbone_lr": 1.0},
        "clips": {
            "form": {"rawframes": "frames", "video": "videos"}[entry["dataset_type"]],
            "short_side": entry["short_side"],
            "clip_len": clip_len,
            "frame_interval": frame_interval,
        },
        "augment": {
            "resize": resize[1],  # of (-1, 256)
            "crop_size": crop[0],
            # RandomResizedCrop's own, where a configuration says nothing; we write ten digits of 4/3
            "area": training["RandomResizedCrop"].get("area_range", [0.08, 1.0]),
            "aspect_ratio": training["RandomResizedCrop"].get("aspect_ratio_range", [0.75, round(4 / 3, 10)]),
            "flip": training["Flip"]["flip_ratio"],
            "mean": recipe["img_norm"]["mean"],
            "std": recipe["img_norm"]["std"],
        },
        "optim": {
            "lr": recipe["optimizer"]["lr"],
            "momentum": recipe["optimizer"]["momentum"],
            "weight_decay": recipe["optimizer"]["weight_decay"],
            "max_grad_norm": recipe["grad_clip"]["max_norm"],
            "gpus": 8,  # every configuration says beside its lr that it is for 8
            "videos_per_gpu": recipe["videos_per_gpu"],
            "accumulate": 1,
            "ema": 0.0,
        },
        "schedule": _reference_schedule(recipe),
        "test": {
            "num_clips": test["SampleFrames"]["num_clips"],
            "num_crops": 3 if "ThreeCrop" in test else 1,
            "crop_size": test["ThreeCrop"]["crop_size"],
            "average_clips": recipe["average_clips"],
        },
        "published": _reference_published(entry),
    }


def shipped(row: str) -> dict[str, Any]:
    """The recipe of a row and, as `published`, its entry in published.yaml."""
    return as_dict(RECIPES[row]) | {"published": as_dict(PUBLISHED[row])}


def differences(row: str, entry: dict[str, Any]) -> tuple[list[str], int]:
    """Values of a recipe that are not the reference's, as `optim.lr: 0.1, not 0.08`; and how many were compared."""
    ours, theirs = shipped(row), reference_recipe(entry)
    faults, compared = [], 0
    for section, values in theirs.items():
        for key, value in values.items():
            compared += 1
            if ours[section].get(key) != value:
                faults.append(f"{section}.{key}: {ours[section].get(key)}, not {value}")
    return faults, compared


def rate_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a training step, for the batch that the recipe's rate belongs to."""
    optim = recipe.optim
    batch = optim.gpus * optim.videos_per_gpu * optim.accumulate
    lr = scaled_lr(optim.lr, batch=batch, reference_batch=optim.reference_batch)
    return learning_rate(learning_rate_schedule(recipe, lr), step, steps_per_epoch)


def worst_rate(recipe: Recipe, schedule_id: str) -> tuple[float, int]:
    """Largest relative distance to the reference's learning rates, and at how many steps; they carry 12 digits."""
    known = read_reference("schedules/lr.json")["schedules"][schedule_id]
    distances = [abs(rate_at(recipe, step, known["iters_per_epoch"]) / lr - 1) for step, lr in known["points"]]
    return max(distances), len(distances)


def _reference_model(entry: dict[str, Any]) -> dict[str, Any]:
    model = entry["effective_model"]
    backbone, dropout = model["backbone"], model["cls_head"]["dropout_ratio"]
    if entry["family"] == "csn":
        return {
            "family": "csn",
            "depth": backbone["depth"],
            "bottleneck": backbone["bottleneck_mode"],
            "norm_eval": backbone["norm_eval"],
            "bn_frozen": backbone["bn_frozen"],
            "dropout": dropout,
        }
    assert backbone["resample_rate"] == backbone["speed_ratio"]  # or Fast would skip frames, too
    return {
        "family": "slowfast",
        "slow_depth": backbone["slow_pathway"]["depth"],
        "fast_depth": backbone["fast_pathway"]["depth"],
        "alpha": backbone["speed_ratio"],
        "beta": 1 / backbone["channel_ratio"],
        "fusion_kernel": backbone["slow_pathway"]["fusion_kernel"],
        "dropout": dropout,
    }


def _reference_schedule(recipe: dict[str, Any]) -> dict[str, Any]:
    """As it takes effect: the steps that stay beside a cosine are gone."""
    schedule = recipe["lr_schedule_effective"]
    assert schedule["by_epoch"] and schedule["warmup_by_epoch"] and schedule["warmup"] == "linear"
    if schedule["policy"] == "step":
        kind = {"policy": "step", "milestones": schedule["step"], "gamma": schedule["gamma"]}
    else:
        kind = {"policy": {"CosineAnnealing": "cosine"}[schedule["policy"]], "min_lr": schedule["min_lr"]}
    return kind | {
        "warmup_epochs": schedule["warmup_iters"],
        "warmup_ratio": schedule["warmup_ratio"],
        "epochs": recipe["total_epochs"],
        "val_interval": recipe["evaluation"]["interval"],
        "checkpoint_interval": recipe["checkpoint_config"]["interval"],
        "log_interval": recipe["log_config"]["interval"],
    }


def _reference_published(entry: dict[str, Any]) -> dict[str, Any]:
    urls = {checkpoint["kind"]: checkpoint["url"] for checkpoint in entry["checkpoints"]}
    later = entry.get("metafile") or {}
    of_these_weights = later.get("weights") in urls.values()

    def with_correction(key: str) -> list[float]:
        """What the table says, then what was said of the very same weights later, where that is another number."""
        value = later.get(key) if of_these_weights else None
        return entry[key] + ([value] if value is not None and value not in entry[key] else [])

    override = entry.get("checkpoint_model_override") or {}
    return {
        "config": entry["config"],
        "gpus": entry["gpus_text"],
        "backbone": entry["backbone_text"],
        "pretrained": entry["pretrained_text"],
        "top1": with_correction("top1"),
        "top5": with_correction("top5"),
        "inference": entry["inference_text"],
        "gpu_mem_mb": entry["gpu_mem_mb"],
        "ckpt": urls.get("ckpt"),
        "ckpt_model": {path.rpartition(".")[2]: value for path, value in override.items()},
        "infer_ckpt": urls.get("infer_ckpt"),
        "log": entry["log_url"],
        "json": entry["json_log_url"],
    }


# ---------------------------------------------------------------------------------------------------------- networks


def count_operations(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """What the published tables call FLOPs of one forward: multiply-adds; each value of a batch norm's input twice,
    of a ReLU's output once, of a pool's input once. `model` must be on the meta device."""
    counted = 0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        match module:
            case nn.BatchNorm3d():
                counted += 2 * inputs[0].numel()
            case nn.ReLU():
                counted += output.numel()
            case nn.MaxPool3d() | nn.AdaptiveAvgPool3d():
                counted += inputs[0].numel()

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.no_grad():
        model.eval()(torch.empty(clip_shape, device="meta"))
    for handle in handles:
        handle.remove()
    return count_macs(model, clip_shape) + counted


@torch.no_grad()
def eval_distances(golden: dict[str, Any], model: nn.Module) -> dict[str, float]:
    """How far a network in eval mode is from a golden file: logits, every stage, probabilities.

    Logits: the largest difference. A stage: the worst of its mean and single values. Both in standard deviations of the
    golden values. A stage's deviation, norm and largest value count relatively, whichever is worse. Probabilities:
    largest difference over the five best; inf where other classes are the best, or a shape is another.
    """
    model.eval()
    outputs = {}
    for name in golden["stages"]:
        if name.endswith(":input"):
            model.get_submodule(name.removesuffix(":input")).register_forward_pre_hook(
                lambda module, inputs, name=name: outputs.update({name: inputs[0].clone()})
            )
        else:
            model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: outputs.update({name: output.clone()})
            )

    logits = model(clips(golden["input_key"], golden["input_shape"]))

    expected = torch.tensor(golden["logits"])
    distances = {"logits": ((logits - expected).abs().max() / expected.std()).item()}
    distances |= {name: _stage_distance(outputs[name], stage) for name, stage in golden["stages"].items()}
    distances["probabilities"] = max(
        _best_distance(probabilities, best)
        for probabilities, best in zip(logits.softmax(dim=1), golden["prob_top5"], strict=True)
    )
    return distances


@torch.no_grad()
def view_distances(golden: dict[str, Any], model: nn.Module) -> dict[str, float]:
    """Views of one video in one batch: raw scores in deviations of the golden ones; averaged ones as differences."""
    model.eval()
    views = clips(golden["input_key"], golden["input_shape"])
    logits = model(views)  # (views, num_classes)
    chunked = torch.cat([model(part) for part in views.split(2)])
    expected = {kind: torch.tensor(output["values"]) for kind, output in golden["outputs"].items()}
    return {
        "logits": ((logits - expected["none"]).abs().max() / expected["none"].std()).item(),
        "prob": _largest(average_views(logits, len(views), "prob"), expected["prob"]),
        "score": _largest(average_views(logits, len(views), "score"), expected["score"]),
        "prob in twos": _largest(average_views(chunked, len(views), "prob"), expected["prob_max_testing_views_2"]),
    }


@dataclass
class Training:
    """What a few steps on one batch left behind."""

    losses: list[float] = field(default_factory=list)
    """Before every step, and after the last."""
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    """Of the first step, before clipping."""
    gradient_norm: float = 0.0
    """Over all gradients of the first step, before clipping."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """After the first forward."""
    norms: list[dict[str, float]] = field(default_factory=list)
    """L2 norm of each parameter after every step."""
    trained: list[int] = field(default_factory=list)
    """How many parameters had a gradient, at every step."""


def train_as(golden: dict[str, Any]) -> Training:
    """Train a filled network as a run of a golden file was: dropout off, the same batch at each step."""
    model = build_filled(golden["config"], dropout=0.0).train()
    parameters = dict(model.named_parameters())
    batch, labels = clips(golden["input_key"], golden["input_shape"]), torch.tensor(golden["labels"])
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=golden["lr_used"],
        momentum=golden["optimizer"]["momentum"],
        weight_decay=golden["optimizer"]["weight_decay"],
    )
    made = Training()
    for step in range(len(golden["steps"])):
        loss = F.cross_entropy(model(batch), labels)
        if step == 0:
            made.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer.zero_grad()
        loss.backward()
        made.losses.append(loss.item())
        made.trained.append(sum(parameter.grad is not None for parameter in parameters.values()))
        if step == 0:
            made.gradients = {
                name: None if parameter.grad is None else parameter.grad.clone()
                for name, parameter in parameters.items()
            }
        norm = nn.utils.clip_grad_norm_(model.parameters(), golden["grad_clip"]["max_norm"]).item()
        made.gradient_norm = made.gradient_norm or norm
        optimizer.step()
        made.norms.append({name: l2(parameter.detach()) for name, parameter in parameters.items()})
    made.losses.append(F.cross_entropy(model(batch), labels).item())
    return made


def l2(values: Tensor) -> float:
    """In float64: summed in float32, the norm of a million values is itself off by 3e-4."""
    return values.double().norm().item()


def _stage_distance(output: Tensor, stage: dict[str, Any]) -> float:
    if list(output.shape) != stage["shape"]:
        return math.inf
    values = output.flatten().double()
    sampled = [i * (values.numel() - 1) // 15 for i in range(16)]
    relative = {
        "std": values.std(correction=0).item(),
        "l2": values.norm().item(),
        "absmax": values.abs().max().item(),
    }
    absolute = [
        (values.mean().item(), stage["mean"]),
        *zip(values[:8].tolist(), stage["first8"], strict=True),
        *zip(values[sampled].tolist(), stage["sample16"], strict=True),
    ]
    return max(
        *(abs(value / stage[key] - 1) for key, value in relative.items()),
        *(abs(value - known) / stage["std"] for value, known in absolute),
    )


def _best_distance(probabilities: Tensor, best: list[tuple[int, float]]) -> float:
    values, classes = probabilities.topk(len(best))
    if classes.tolist() != [label for label, _ in best]:
        return math.inf
    return max(abs(value - known) for value, (_, known) in zip(values.tolist(), best, strict=True))


def _largest(values: Tensor, expected: Tensor) -> float:
    return (values - expected).abs().max().item()


# ------------------------------------------------------------------------------------------------------------ tables


def main() -> None:
    if not REFERENCE.is_dir():
        sys.exit(f"the reference numbers are not here ({REFERENCE}); put them there, the tables compare with them")
    torch.set_num_threads(2)
    for table in (_rows(), _evaluations(), _trainings(), _rows_without_numbers()):
        print(*table, sep="\n", end="\n\n")
    print(f"torch {torch.__version__}, float32, CPU ({platform.machine()}), {torch.get_num_threads()} threads")


def _rows() -> Iterator[str]:
    yield "| row | keys, order, shapes | parameters | multiply-adds at 256² | FLOPs | learning rate | recipe |"
    yield "|---|---|---|---|---|---|---|"
    for row, entry in reference_entries().items():
        with torch.device("meta"):
            model = create_model(row)
        state = [[key, list(tensor.shape)] for key, tensor in model.state_dict().items()]
        size, parameters = entry["complexity"], count_parameters(model)
        published_size, published_cost = size.get("published_params"), size.get("published_flops")
        same_keys = state == read_reference(f"statedict/{entry['config']}.json")["state_dict"]
        rate, points = worst_rate(RECIPES[row], entry["schedule_id"])
        faults, compared = differences(row, entry)
        macs, cost = count_macs(model, CLIP_256), count_operations(model, CLIP_256)
        yield _line(
            f"`{row}`",
            f"{len(state)} {_verdict(same_keys)}",
            f"{parameters:,} {_verdict(parameters == size['params_total'], parameters == published_size)}",
            f"{macs / 1e9:.2f} G {_verdict(macs == size['macs_conv_linear_256'])}",
            f"{cost / 1e9:.2f} G {_verdict(cost == size['mmcv_flops_tool_256'], cost == published_cost)}",
            f"{rate:.0e} at {points:,} steps",
            f"{compared} equal" if not faults else "; ".join(faults),
        )


def _evaluations() -> Iterator[str]:
    yield "| configuration | case | logits | worst stage | top-5 probabilities | float32 against float64 |"
    yield "|---|---|---|---|---|---|"
    for path in sorted((REFERENCE / "golden").glob("*.eval*.json")):
        golden = read_reference(f"golden/{path.name}")
        config = path.name.partition(".")[0]
        distances = eval_distances(golden, build_filled(config, **_override(golden)))
        logits, probabilities = distances.pop("logits"), distances.pop("probabilities")
        noise = golden.get("float32_vs_float64", {}).get("max_rel_to_std")
        yield _line(
            f"`{config}`",
            _case(golden["input_shape"], golden.get("override")),
            f"{logits:.1e}",
            f"{max(distances.values()):.1e}",
            f"{probabilities:.1e}",
            f"{noise:.1e}" if noise else "",
        )
    for path in sorted((REFERENCE / "golden").glob("*.views64.json")):
        golden = read_reference(f"golden/{path.name}")
        distances = view_distances(golden, build_filled(golden["config"]))
        case, logits = _case(golden["input_shape"]), f"{distances['logits']:.1e}"
        averages = max(distances["prob"], distances["prob in twos"])
        yield _line(f"`{golden['config']}`", case, logits, "", f"{averages:.1e}", "")


def _trainings() -> Iterator[str]:
    yield "| configuration | lr | loss | gradients | batch norm's buffers | losses after 1, 2, 3 steps |"
    yield "|---|---|---|---|---|---|"
    for path in sorted((REFERENCE / "golden").glob("*.train64.json")):
        for golden in read_reference(f"golden/{path.name}")["runs"].values():
            made = train_as(golden)
            expected = [*(step["loss"] for step in golden["steps"]), golden["loss_after_last_step"]]
            losses = [abs(ours / loss - 1) for ours, loss in zip(made.losses, expected, strict=True)]
            gradients = [
                abs(l2(made.gradients[name]) / known["l2"] - 1)
                for name, known in golden["steps"][0]["grads"].items()
                if known is not None
            ]
            buffers = [
                abs(getattr(made.buffers[name].double(), kind)(**options).item() / known[kind] - 1)
                for name, known in golden["steps"][0]["buffers_after_forward"].items()
                for kind, options in (("mean", {}), ("std", {"correction": 0}))
                if known[kind]
            ]
            noise = ", ".join(f"{value:.0e}" for value in golden["float32_vs_float64_rel"][1:])
            yield _line(
                f"`{golden['config']}`",
                f"{golden['lr_used']:g}",
                f"{losses[0]:.1e}",
                f"{max(gradients):.1e} ({max(golden['float32_vs_float64_step0_grad_l2_rel'].values()):.0e})",
                f"{max(buffers):.1e}",
                ", ".join(f"{value:.1e}" for value in losses[1:]) + f" ({noise})",
            )


def _rows_without_numbers() -> Iterator[str]:
    """Rows whose configuration has no golden numbers, and whose numbers stand for theirs."""
    measured = {path.name.partition(".")[0] for path in (REFERENCE / "golden").glob("*.eval64.json")}
    yield "| row without logits of its own | its network is that of |"
    yield "|---|---|"
    for row in RECIPES:
        config = PUBLISHED[row].config
        if config not in measured:
            twins = sorted(other for other in measured if _shape(other) == _shape(config))
            yield _line(f"`{row}`", ", ".join(f"`{twin}`" for twin in twins) or "no other: the same classes, deeper")


def _shape(config: str) -> dict[str, Any]:
    """What shapes a network's logits: how its batch norm trains does not."""
    return {key: value for key, value in CONFIGS[config].items() if key not in ("norm_eval", "bn_frozen")}


def _case(shape: list[int], override: dict[str, Any] | None = None) -> str:
    """In words: videos, views if there are several, height x width."""
    videos, views, _, _, height, width = shape
    words = [f"{height}×{width}", f"{videos} videos" if videos > 1 else "", f"{views} views" if views > 1 else ""]
    words += [f"{path.rpartition('.')[2]} {value}" for path, value in (override or {}).items()]
    return ", ".join(word for word in words if word)


def _override(golden: dict[str, Any]) -> dict[str, Any]:
    """For a file that was made with another argument: that one, and the name its numbers were drawn by."""
    if "override" not in golden:
        return {}
    changed = {path.rpartition(".")[2]: value for path, value in golden["override"].items()}
    return changed | {"seed": golden["config"]}


def _verdict(is_equal: bool, is_published: bool = False) -> str:
    return "DIFFERENT" if not is_equal else "published" if is_published else "equal"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
