"""Released weights: fetched, checked, told apart, renamed, and loaded whole or not at all.

Told apart by their tensors' names. Left to right: the file, the kind, what becomes of it.

    backbone.conv1.conv.weight   OpenMMLab's, or ours         as it is, head included
    conv1.conv.weight            OpenMMLab's for starting     the backbone; what it has of a head is left over
    stem.0.weight                VMZ's (facebookresearch)     renamed
    s1.pathway0_stem.conv.…      PySlowFast's                 refused: its laterals are others
    blocks.0.…                   PyTorchVideo's               refused likewise
    {'blobs': …}                 Caffe2's, of PySlowFast      refused likewise

Nothing of a file is ever run: torch.load with weights_only and a short list of numpy's scalars, or safetensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.checkpoint import names_not_finite, save_checkpoint
from ..errors import UserError
from ..params import Params, as_dict, load_params
from ..recipe import CSNModel, SlowFastModel
from ..zoo import build_model
from .download import fetch_weights
from .formats import HEAD, MAX_CLASSES, Weights, read_weights, some
from .identity import identify, record_beside
from .published import CACHE, published_file


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors, and where the network's come from."""

    file: Path
    sha256: str
    kind: str
    matched: tuple[str, ...]
    """Names in the network of the tensors that were loaded."""
    renamed: dict[str, str]
    """Those of them that the file calls otherwise: name in the file -> name in the network."""
    left_over: tuple[str, ...]
    """Names in the file of what has no place here; never a tensor of the backbone."""
    missing: tuple[str, ...]
    """Names in the network of what kept the values it had; the head's, or nothing."""
    zeroed: tuple[str, ...]
    """Batch norm's counters that the file lacks; nothing here reads them."""
    head: str
    """`loaded`, or why the network keeps the head it had."""

    def text(self) -> str:
        """Some lines for people."""
        total = len(self.matched) + len(self.zeroed) + len(self.missing)
        pairs = [f"{old} -> {new}" for old, new in self.renamed.items()]
        lines = [
            f"{self.file}: {self.kind}, sha256 {self.sha256}",
            f"  matched    {len(self.matched)} of the network's {total} tensors",
            f"  renamed    {some(pairs)}",
            f"  left over  {some(self.left_over)}",
            f"  missing    {some(self.missing)}",
            f"  head       {self.head}",
        ]
        if self.zeroed:
            lines.insert(-1, f"  set to 0   {some(self.zeroed)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    cache: Path = CACHE,
    tell: Callable[[str, int, int], None] | None = None,
) -> LoadReport:
    """Load a file, given by path or URL, into one of the zoo's networks; `tell` hears of the download.

    Every tensor of the backbone comes from the file. The head does too if it has the network's number of classes, else
    the network keeps the one it was made with. Raises UserError, and leaves the network as it was, if the file cannot
    be had, holds code, or is of another network.
    """
    path = fetch_weights(source, cache, tell=tell)
    record_beside(path)
    return _load(model, read_weights(path))


def open_network(model: SlowFastModel | CSNModel, weights: "Weights") -> tuple[nn.Module, LoadReport]:
    """The network that a recipe's section describes, with all its weights from a file, its head included.

    Raises UserError, also for a file without a head for this network.
    """
    head = weights.state.get(HEAD[0])
    if head is None or head.ndim != 2:
        raise UserError(f"{weights.path} ({weights.kind}) has no classifier; it is for training, not for testing")
    if not 1 <= head.shape[0] <= MAX_CLASSES:
        raise UserError(f"{weights.path}: its classifier has {head.shape[0]} classes; it is damaged, fetch it again")
    network = build_model(model, head.shape[0])
    report = _load(network, weights)
    if report.head != "loaded":
        raise UserError(f"{weights.path}: the head would be {report.head}; it is for training, not for testing")
    return network, report


def import_weights(
    row: str,
    source: str | Path | None = None,
    *,
    out: Path | None = None,
    num_classes: int | None = None,
    params: Params | None = None,
    cache: Path = CACHE,
    tell: Callable[[str, int, int], None] | None = None,
) -> tuple[Path, LoadReport]:
    """Make a checkpoint of ours for `row` from somebody's weights; gives its path and what was loaded.

    `source`: path or URL; the row's published checkpoint if None. `out`: `<cache>/<row>.pth` if None. `num_classes`:
    as many as the file's head has if None, 400 where it has none; a fresh head is drawn with the recipe's seed.
    `tell` hears of the download: name, bytes here, bytes in all. Raises UserError.
    """
    params = params or load_params()
    params.check_model(row)
    recipe = params.recipes[row]
    if source is None:
        published = published_file(params, row)
        if published is None:
            raise UserError(f"{row} has no published checkpoint; name a file or URL: actionzoo weights {row} SOURCE")
        weights = read_weights(fetch_weights(published.address, cache, mirrors=published.mirrors, tell=tell))
        section = published.model
    else:
        weights = read_weights(fetch_weights(source, cache, tell=tell))
        section = identify(weights.path, weights.meta, weights.shapes, params=params, row=row).model
    if num_classes is None:
        num_classes = weights.state[HEAD[0]].shape[0] if HEAD[0] in weights.state else 400
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(section, num_classes)
    report = _load(model, weights, fusion_key=f"recipes.{row}.model.fusion_kernel")
    epoch = weights.meta.get("epoch")
    drawn_before = str(weights.meta.get("head", ""))
    meta = {
        "epoch": epoch if isinstance(epoch, int) else 0,
        "row": row,
        "source": weights.path.name,
        "source_sha256": weights.sha256,
        "kind": weights.kind,
        # a head that was drawn at random stays one, however often it is imported
        "head": drawn_before if report.head == "loaded" and drawn_before.startswith("fresh") else report.head,
        "model": as_dict(section),
    }
    out = out or cache / f"{row}.pth"
    save_checkpoint(out, {"meta": meta, "state_dict": dict(model.state_dict())})
    return out, report


def _load(model: nn.Module, weights: Weights, fusion_key: str = "the recipe's model.fusion_kernel") -> LoadReport:
    wanted, found = model.state_dict(), weights.state
    head = _judge_head(wanted, weights)
    state, zeroed, missing, misshapen = {}, [], [], []
    for name, tensor in wanted.items():
        if name in HEAD and head != "loaded":
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
            f"{weights.path} has weights that are no numbers (NaN or infinite), in {some(not_finite)}; nothing was "
            "loaded. Fetch it again, or take an earlier checkpoint of the training"
        )
    model.load_state_dict(state | {name: torch.zeros_like(wanted[name]) for name in zeroed}, strict=False)
    return LoadReport(
        file=weights.path,
        sha256=weights.sha256,
        kind=weights.kind,
        matched=tuple(state),
        renamed={weights.names[name]: name for name in state if weights.names[name] != name},
        left_over=tuple(weights.names[name] for name in found if name not in state) + weights.not_for_us,
        missing=() if head == "loaded" else HEAD,
        zeroed=tuple(zeroed),
        head=head,
    )


def _as_weights(found: Tensor, wanted: Tensor, weights: Weights, name: str) -> Tensor:
    """The file's tensor in the network's type. Raises UserError for one that no conversion makes into weights."""
    if found.layout != torch.strided or found.is_quantized or found.is_complex():
        raise UserError(f"{weights.path}: {weights.names[name]} is {found.dtype}, {found.layout}: no plain weights")
    if found.is_floating_point() != wanted.is_floating_point() or found.dtype == torch.bool:
        raise UserError(
            f"{weights.path}: {weights.names[name]} is of type {found.dtype}, the network's is {wanted.dtype}; it is "
            "damaged, or no weights file"
        )
    return found.to(wanted.dtype)


def _judge_head(wanted: Mapping[str, Tensor], weights: Weights) -> str:
    """`loaded`, or a sentence on why not. Raises UserError for a head that reads another number of features."""
    num_classes, features = wanted[HEAD[0]].shape
    if any(name not in weights.state for name in HEAD):
        return f"fresh, for {num_classes} classes: the file has none for this network"
    theirs = weights.state[HEAD[0]].shape
    if len(theirs) != 2 or theirs[1] != features:
        raise UserError(
            f"{weights.path} is of another network: its classifier {weights.names[HEAD[0]]} has shape {tuple(theirs)}, "
            f"and this one reads {features} features"
        )
    if theirs[0] != num_classes:
        return f"fresh, for {num_classes} classes: the file's has {theirs[0]}"
    return "loaded"


def _of_another_network(
    wanted: Mapping[str, Tensor],
    weights: Weights,
    missing: list[str],
    misshapen: list[str],
    strange: list[str],
    fusion_key: str,
) -> str:
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
        "fit; nothing was loaded. Check the row"
    ]
    if missing:
        lines.append(f"  not in the file: {some(missing)}")
    if misshapen:
        named = [f"{name}: file {shapes[name][0]}, network {shapes[name][1]}" for name in misshapen]
        lines.append(f"  of another shape: {some(named)}")
    if strange:
        lines.append(f"  in the file alone: {some([weights.names[name] for name in strange])}")
    return "\n".join(lines)
