"""Loads weights files into networks, whole or not at all, and imports published weights as checkpoints of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.checkpoint import names_not_finite, save_checkpoint
from ..errors import UserError
from ..params import Params, load_params
from ..process.progress import Progress
from ..recipe import CSNModel, SlowFastModel, as_dict
from ..zoo import build_model
from .download import CACHE, fetch_weights
from .formats import CLASSIFIER, MAX_CLASSES, WeightsFile, abbreviated, read_weights
from .identity import NAME_KEYS, identify, record_beside
from .published import published_file


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors, and of the network's."""

    file: Path
    sha256: str
    kind: str
    matched: tuple[str, ...]
    """Names in the network of the tensors that came from the file."""
    renamed: dict[str, str]
    """Name in the file -> name in the network, of those with different names."""
    left_over: tuple[str, ...]
    """Names in the file of tensors that the network does not have; never of the backbone."""
    missing: tuple[str, ...]
    """Names in the network of tensors that kept their values: the classifier's, or none."""
    zeroed: tuple[str, ...]
    """Batch norm's step counters that the file lacks; they have no effect here."""
    head: str
    """`loaded`, or why the network kept its own classifier."""

    def text(self) -> str:
        """A few lines for people."""
        total = len(self.matched) + len(self.zeroed) + len(self.missing)
        pairs = [f"{old} -> {new}" for old, new in self.renamed.items()]
        lines = [
            f"{self.file}: {self.kind}, sha256 {self.sha256}",
            f"  matched    {len(self.matched)} of the network's {total} tensors",
            f"  renamed    {abbreviated(pairs)}",
            f"  left over  {abbreviated(self.left_over)}",
            f"  missing    {abbreviated(self.missing)}",
            f"  head       {self.head}",
        ]
        if self.zeroed:
            lines.insert(-1, f"  set to 0   {abbreviated(self.zeroed)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    cache: Path = CACHE,
    on_progress: Progress | None = None,
) -> LoadReport:
    """Load a file, given by path or URL, into one of the zoo's networks.

    All tensors of the backbone come from the file. The classifier does too if it has the network's number of classes;
    otherwise the network keeps its own. Raises UserError, and leaves the network as it was, if the file cannot be
    fetched, contains code, or is of another network. `on_progress` is called during a download: name, bytes so far,
    bytes in all.
    """
    path = fetch_weights(source, cache, on_progress=on_progress)
    record_beside(path)
    return _load(model, read_weights(path))


def open_network(model: SlowFastModel | CSNModel, weights: WeightsFile) -> tuple[nn.Module, LoadReport]:
    """The network that a recipe's model section describes, with all its weights from a file, classifier included.

    Raises UserError, also if the file has no classifier for this network.
    """
    head = weights.state.get(CLASSIFIER[0])
    if head is None or head.ndim != 2:
        raise UserError(f"{weights.path} ({weights.kind}) has no classifier; it is for training, not for evaluation")
    if not 1 <= head.shape[0] <= MAX_CLASSES:
        raise UserError(f"{weights.path}: its classifier has {head.shape[0]} classes; it is damaged, fetch it again")
    network = build_model(model, head.shape[0])
    report = _load(network, weights)
    if report.head != "loaded":
        raise UserError(f"{weights.path}: the head would be {report.head}; it is for training, not for evaluation")
    return network, report


def num_classes_of(network: nn.Module) -> int:
    """The number of logits of one of the zoo's networks."""
    return int(network.state_dict()[CLASSIFIER[0]].shape[0])


def import_weights(  # seven parameters: the arguments of `actionzoo weights`, and where it works
    model: str,
    source: str | Path | None = None,
    *,
    out: Path | None = None,
    num_classes: int | None = None,
    params: Params | None = None,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> tuple[Path, LoadReport]:
    """Write a checkpoint of this package from weights that somebody published; returns its path and what was loaded.

    `model` is a name of the zoo. `source`: path or URL, by default the model's published checkpoint. `cache`: weights/
    in the project's folder by default. `out`: by default `<cache>/<model>.pth`. `num_classes`: by default as many as
    the file's classifier has, 400 if it has none; a classifier that the file lacks is drawn with the recipe's seed.
    `on_progress` is called during the download with name, bytes so far, bytes in all. Raises UserError.
    """
    params = params or load_params()
    cache = cache or params.workspace / CACHE
    params.check_model(model)
    recipe = params.recipes[model]
    if source is None:
        published = published_file(params, model)
        if published is None:
            raise UserError(
                f"{model} has no published checkpoint; name a file or URL: actionzoo weights {model} SOURCE"
            )
        path = fetch_weights(published.address, cache, mirrors=published.mirrors, on_progress=on_progress)
        weights, section = read_weights(path), published.model
    else:
        weights = read_weights(fetch_weights(source, cache, on_progress=on_progress))
        section = identify(weights.path, weights.meta, weights.shapes, params=params, model=model).model
    if num_classes is None:
        num_classes = weights.state[CLASSIFIER[0]].shape[0] if CLASSIFIER[0] in weights.state else 400
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = build_model(section, num_classes)
    report = _load(network, weights, fusion_key=f"recipes.{model}.model.fusion_kernel")
    epoch = weights.meta.get("epoch")
    drawn_before = str(weights.meta.get("head", ""))
    meta = {
        "epoch": epoch if isinstance(epoch, int) else 0,
        **dict.fromkeys(NAME_KEYS, model),
        "source": weights.path.name,
        "source_sha256": weights.sha256,
        "kind": weights.kind,
        # a classifier that was drawn at random stays one, however often it is imported
        "head": drawn_before if report.head == "loaded" and drawn_before.startswith("fresh") else report.head,
        "model": as_dict(section),
    }
    out = out or cache / f"{model}.pth"
    save_checkpoint(out, {"meta": meta, "state_dict": dict(network.state_dict())})
    return out, report


def _load(model: nn.Module, weights: WeightsFile, fusion_key: str = "the recipe's model.fusion_kernel") -> LoadReport:
    """Load everything or nothing. `fusion_key` is the setting to name where only that one differs."""
    wanted, found = model.state_dict(), weights.state
    head = _judge_head(wanted, weights)
    state: dict[str, Tensor] = {}
    zeroed: list[str] = []
    missing: list[str] = []
    misshapen: list[str] = []
    for name, tensor in wanted.items():
        if name in CLASSIFIER and head != "loaded":
            continue
        if name not in found:
            (zeroed if name.endswith("num_batches_tracked") else missing).append(name)
        elif found[name].shape != tensor.shape:
            misshapen.append(name)
        else:
            state[name] = _as_weights(found[name], tensor, weights, name)
    strange = [name for name in found if name.startswith("backbone.") and name not in wanted]
    if missing or misshapen or strange:
        raise UserError(_of_another_network(wanted, weights, missing, misshapen, strange, fusion_key))
    if not_finite := names_not_finite(state):
        raise UserError(
            f"{weights.path} has weights that are no numbers (NaN or infinite), in {abbreviated(not_finite)}; nothing "
            "was loaded. Fetch it again, or take an earlier checkpoint of the training"
        )
    model.load_state_dict(state | {name: torch.zeros_like(wanted[name]) for name in zeroed}, strict=False)
    return LoadReport(
        file=weights.path,
        sha256=weights.sha256,
        kind=weights.kind,
        matched=tuple(state),
        renamed={weights.names[name]: name for name in state if weights.names[name] != name},
        left_over=tuple(weights.names[name] for name in found if name not in state) + weights.not_for_us,
        missing=() if head == "loaded" else CLASSIFIER,
        zeroed=tuple(zeroed),
        head=head,
    )


def _as_weights(found: Tensor, wanted: Tensor, weights: WeightsFile, name: str) -> Tensor:
    """The file's tensor in the network's dtype. Raises UserError for a tensor that cannot be weights."""
    if found.layout != torch.strided or found.is_quantized or found.is_complex():
        raise UserError(f"{weights.path}: {weights.names[name]} is {found.dtype}, {found.layout}: no plain weights")
    if found.is_floating_point() != wanted.is_floating_point() or found.dtype == torch.bool:
        raise UserError(
            f"{weights.path}: {weights.names[name]} is of type {found.dtype}, the network's is {wanted.dtype}; it is "
            "damaged, or no weights file"
        )
    return found.to(wanted.dtype)


def _judge_head(wanted: Mapping[str, Tensor], weights: WeightsFile) -> str:
    """`loaded`, or a clause on why not. Raises UserError for a classifier of another number of features."""
    num_classes, features = wanted[CLASSIFIER[0]].shape
    if any(name not in weights.state for name in CLASSIFIER):
        return f"fresh, for {num_classes} classes: the file has none for this network"
    theirs = weights.state[CLASSIFIER[0]].shape
    if len(theirs) != 2 or theirs[1] != features:
        raise UserError(
            f"{weights.path} is of another network: its classifier {weights.names[CLASSIFIER[0]]} has shape "
            f"{tuple(theirs)}, and this one reads {features} features"
        )
    if theirs[0] != num_classes:
        return f"fresh, for {num_classes} classes: the file's has {theirs[0]}"
    return "loaded"


def _of_another_network(
    wanted: Mapping[str, Tensor],
    weights: WeightsFile,
    missing: list[str],
    misshapen: list[str],
    strange: list[str],
    fusion_key: str,
) -> str:
    """The error for a file whose tensors do not fit."""
    shapes = {name: (tuple(weights.state[name].shape), tuple(wanted[name].shape)) for name in misshapen}
    laterals = [name for name in misshapen if name.endswith("_lateral.conv.weight")]
    if laterals == misshapen and not missing and not strange:
        theirs, ours = shapes[laterals[0]]
        if theirs[:2] == ours[:2]:
            return (
                f"{weights.path} was trained with fusion_kernel {theirs[2]}, this network has {ours[2]}: its "
                f"{len(laterals)} lateral convolutions span {theirs[2]} frames instead of {ours[2]} ({laterals[0]}: "
                f"{theirs}, network {ours}). The published 8x8 checkpoint at short side 256 is such a file. Set "
                f"{fusion_key} to {theirs[2]} to use it"
            )
    backbone = [name for name in wanted if name.startswith("backbone.") and not name.endswith("num_batches_tracked")]
    matched = len(backbone) - len(missing) - len(misshapen)
    lines = [
        f"{weights.path} ({weights.kind}) is of another network: {matched} of the backbone's {len(backbone)} tensors "
        "fit; nothing was loaded. Check the model's name"
    ]
    if missing:
        lines.append(f"  not in the file: {abbreviated(missing)}")
    if misshapen:
        named = [f"{name}: file {shapes[name][0]}, network {shapes[name][1]}" for name in misshapen]
        lines.append(f"  of another shape: {abbreviated(named)}")
    if strange:
        lines.append(f"  in the file alone: {abbreviated([weights.names[name] for name in strange])}")
    return "\n".join(lines)
