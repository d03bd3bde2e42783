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

import hashlib
import json
import os
import re
import shutil
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .addresses import without_secrets
from .engine.checkpoint import names_not_finite, read_torch_file, save_checkpoint
from .errors import MACHINE_ERRNOS, UserError
from .files.atomic import atomic_write
from .files.hashes import sha256_of
from .files.locks import locked
from .identity import identify, record_beside
from .kinetics.single_file import complete
from .kinetics.transfer import Patience, discard
from .params import CSNModel, Params, SlowFastModel, as_dict, load_params
from .published import CACHE, published_file
from .zoo import build_model

MAX_CLASSES = 1_000_000

HEAD = ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias")


@dataclass(frozen=True)
class Report:
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
            f"  renamed    {_some(pairs)}",
            f"  left over  {_some(self.left_over)}",
            f"  missing    {_some(self.missing)}",
            f"  head       {self.head}",
        ]
        if self.zeroed:
            lines.insert(-1, f"  set to 0   {_some(self.zeroed)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    cache: Path = CACHE,
    tell: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Load a file, given by path or URL, into one of the zoo's networks; `tell` hears of the download.

    Every tensor of the backbone comes from the file. The head does too if it has the network's number of classes, else
    the network keeps the one it was made with. Raises UserError, and leaves the network as it was, if the file cannot
    be had, holds code, or is of another network.
    """
    path = fetch_weights(source, cache, tell=tell)
    record_beside(path)
    return _load(model, read_weights(path))


def open_network(model: SlowFastModel | CSNModel, weights: "Weights") -> tuple[nn.Module, Report]:
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
) -> tuple[Path, Report]:
    """Make a checkpoint of ours for `row` from somebody's weights; gives its path and what was loaded.

    `source`: path or URL; the row's published checkpoint if None. `out`: `<cache>/<row>.pth` if None. `num_classes`:
    as many as the file's head has if None, 400 where it has none; a fresh head is drawn with the recipe's seed.
    `tell` hears of the download: name, bytes here, bytes in all. Raises UserError.
    """
    params = params or load_params()
    params.check_row(row)
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


def fetch_weights(
    source: str | Path,
    cache: Path = CACHE,
    *,
    mirrors: Sequence[str] | None = None,
    retries: int = 4,
    backoff_seconds: float = 1.0,
    tell: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The file that `source` means, on this machine: a path as it is, an http(s) URL downloaded into `cache`.

    Eight hex digits at the end of a name, as in `…_20200826-f85b90c5.pth`, are the first of the sha256 of the bytes:
    they are checked, and such a file is downloaded once. A file without them is downloaded each time, for nothing
    tells whether it still is the same. `retries` counts attempts in a row that brought nothing.

    A URL's file is looked for in this order: in `cache`; under its base name in ACTIONZOO_WEIGHTS, a folder or URL;
    at the URL; at the `mirrors`, URLs or paths. Wherever it comes from, its bytes must be what the URL's name promises.
    With `mirrors` None it is not a published file, and a name without digits is not looked for in ACTIONZOO_WEIGHTS.

    Raises UserError that names every address that was tried. A download that is not what its name says is kept under a
    name that says so.
    """
    url = urllib.parse.urlsplit(str(source))
    is_remote = url.scheme in ("http", "https")
    if not is_remote and mirrors is None:
        return _checked_path(source)
    name = _plain_name(url.path if is_remote else Path(url.path).name)
    if _promised(name):
        path = cache / name
        if path.is_file() and _is_what_its_name_says(path):
            return path
    else:  # names like best.pth, of which there are many
        path = cache / f"from-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}" / name
    addresses = [*_own_address(name, is_published=mirrors is not None), str(source), *(mirrors or ())]
    faults = []
    for number, address in enumerate(addresses, 1):
        # where another address may have it, no minutes are spent on one that is gone
        patience = Patience(
            retries if number == len(addresses) else min(retries, 1), backoff_seconds, threading.Event()
        )
        try:
            return _fetch_one(address, path, name, patience, tell)
        except UserError as fault:
            faults.append(str(fault))
    own_place = "a folder (or behind a URL) that the environment variable ACTIONZOO_WEIGHTS names"
    if not is_remote:
        remedy = ""
    elif _promised(name):
        remedy = f". Without the internet: put {name} into {cache}/, or into {own_place}"
    elif mirrors is not None:
        remedy = f". Without the internet: put {name} into {own_place}"
    else:
        remedy = ". Without the internet: name a file of this machine instead"
    raise UserError("; ".join(faults) + remedy)


def _own_address(name: str, is_published: bool) -> list[str]:
    """Where ACTIONZOO_WEIGHTS has a file of this name, if it may: other names than published ones are too common."""
    place = os.environ.get("ACTIONZOO_WEIGHTS", "").strip()
    if not place or not (is_published or _promised(name)):
        return []
    if place.startswith(("http://", "https://")):
        folder, query, words = place.partition("?")
        return [f"{folder.rstrip('/')}/{urllib.parse.quote(name)}{query}{words}"]
    folder = _as_path(place)
    if not folder.is_dir():
        raise UserError(f"the environment variable ACTIONZOO_WEIGHTS is {place}, which is neither a folder nor a URL")
    return [str(folder / name)] if (folder / name).is_file() else []


def _as_path(source: str | Path) -> Path:
    url = urllib.parse.urlsplit(str(source))
    return Path(urllib.request.url2pathname(url.path)) if url.scheme == "file" else Path(source).expanduser()


def _checked_path(source: str | Path, promised: str = "") -> Path:
    """A file of this machine, whose bytes are what its name, or another's, promises. Raises UserError."""
    path = _as_path(source)
    if path.is_dir():
        raise UserError(f"{source} is a folder, not a file; name the weights file in it")
    if not path.is_file():
        raise UserError(f"{source} is no file; give a path, or a URL with https://")
    if not (wanted := promised or _promised(path.name)):
        return path
    found = sha256_of(path)
    if not found.startswith(wanted):
        raise UserError(
            f"{path} has sha256 {found[:8]}…, its name promises {wanted}: it is damaged. "
            "Fetch it again; if you know it to be right, give it a name without those digits"
        )
    return path


def _fetch_one(
    address: str,
    path: Path,
    name: str,
    patience: Patience,
    tell: Callable[[str, int, int], None] | None,
) -> Path:
    """The file behind one address, as `path` if it has to be downloaded. `name` says what the bytes must be."""
    url = urllib.parse.urlsplit(address)
    if url.scheme not in ("http", "https"):
        found = _checked_path(address, _promised(name))
        if found.name == name:
            return found
        with found.open("rb") as source, atomic_write(path) as copy:  # what a file is goes by its name
            shutil.copyfileobj(source, copy)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{name}.lock")):
        if _promised(name) and path.is_file():
            if _is_what_its_name_says(path):
                return path
            _refuse(path)
        partial = path.with_name(f".{name}.partial")
        on_bytes = (lambda here, size: tell(name, here, size)) if tell else None
        complete(address, partial, patience, tell=on_bytes)
        os.replace(partial, path)
        discard(partial)
        if not _is_what_its_name_says(path):
            kept, found = _refuse(path)
            raise UserError(
                f"{without_secrets(url.geturl())} has sha256 {found[:8]}…, its name promises {_promised(name)}; it was "
                f"not loaded and is kept as {kept}. Run again to fetch it anew; if you know it to be right, load that "
                "file"
            )
    return path


@dataclass(frozen=True)
class Weights:
    """A file's tensors under the network's names, none of them loaded into a network yet."""

    path: Path
    sha256: str
    kind: str
    state: dict[str, Tensor]
    names: dict[str, str]
    """Name in the network -> name in the file."""
    not_for_us: tuple[str, ...]
    """Names in the file of a head that is not to be loaded."""
    meta: dict[str, Any]
    """What the file says about itself, as it says it: not judged yet."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.state.items()}


def _load(model: nn.Module, weights: Weights, fusion_key: str = "the recipe's model.fusion_kernel") -> Report:
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
            f"{weights.path} has weights that are no numbers (NaN or infinite), in {_some(not_finite)}; nothing was "
            "loaded. Fetch it again, or take an earlier checkpoint of the training"
        )
    model.load_state_dict(state | {name: torch.zeros_like(wanted[name]) for name in zeroed}, strict=False)
    return Report(
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
        lines.append(f"  not in the file: {_some(missing)}")
    if misshapen:
        named = [f"{name}: file {shapes[name][0]}, network {shapes[name][1]}" for name in misshapen]
        lines.append(f"  of another shape: {_some(named)}")
    if strange:
        lines.append(f"  in the file alone: {_some([weights.names[name] for name in strange])}")
    return "\n".join(lines)


# Of what metadata written by mmcv may hold: scores as numpy's scalars. Under numpy's old name and its new one.
_NUMPY_SCALARS = [
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]


def read_weights(path: Path) -> Weights:
    """The file's tensors and metadata. Raises UserError if it is damaged, holds code, or is of no known kind."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise UserError(f"{path} is empty; fetch it again")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, no weights file; fetch it again, from the file's own address")
    if not head.startswith(b"PK") and b"blobs" in head:  # a plain pickle of numpy arrays, whose readers would be run
        _refuse_caffe2(path)
    content = _read_safetensors(path) if head[8:9] == b"{" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors with names but a {type(content).__name__}; it is no weights file")
    if isinstance(content.get("blobs"), Mapping):
        _refuse_caffe2(path)
    if isinstance(content.get("model_state"), Mapping):
        content = {"state_dict": content["model_state"]}
    # a saved state of a training says under `about` what others say under `meta`
    meta = next((content[key] for key in ("meta", "about") if isinstance(content.get(key), dict)), {})
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = {
        re.sub(r"^module\.", "", name): tensor
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    kind, names, not_for_us = _recognise(path, list(tensors), meta)
    return Weights(
        path=path,
        sha256=sha256_of(path),
        kind=kind,
        state={new: tensors[old] for old, new in names.items()},
        names={new: old for old, new in names.items()},
        not_for_us=tuple(not_for_us),
        meta=meta,
    )


def _read_pickle(path: Path) -> Any:
    known = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([item for item in _NUMPY_SCALARS if item not in known]):
        return read_torch_file(path, "fetch it again, or from a source you know")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta = {key: _plain(value) for key, value in (file.metadata() or {}).items()}
            return {"meta": meta, "state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except OSError as error:
        if error.errno in MACHINE_ERRNOS:
            raise
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); fetch it again") from None


def _plain(text: str) -> Any:
    """Metadata of safetensors are texts; ours, JSON where they were something else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _recognise(path: Path, names: list[str], meta: dict[str, Any]) -> tuple[str, dict[str, str], list[str]]:
    """The kind, name in the file -> name in the network, and the names of a head that is not to be loaded."""
    if any(re.match(r"s\d+(\.pathway\d_|_fuse\.)", name) for name in names):
        _refuse_pyslowfast(path, names)
    if any(re.match(r"blocks\.\d+\.", name) for name in names):
        _refuse_pytorchvideo(path, names)
    if "stem.0.weight" in names:
        is_ip = any(".conv2.0.0." in name for name in names)
        return "VMZ weights", {name: _from_vmz(name, is_ip) for name in names}, []
    if any(name.startswith("backbone.") for name in names):
        kind = "checkpoint of this zoo" if "row" in meta or "val_top1" in meta else "OpenMMLab checkpoint"
        return kind, {name: name for name in names}, []
    if "conv1.conv.weight" in names or "slow_path.conv1.conv.weight" in names:
        head = [name for name in names if name.startswith(("fc.", "fc_cls.", "cls_head."))]
        return "backbone weights", {name: f"backbone.{name}" for name in names if name not in head}, head
    what = f"{len(names)} tensors, {_some(names)}" if names else "no tensors"
    raise UserError(
        f"{path} is of no known kind: {what}. Known are OpenMMLab's and this zoo's checkpoints, backbones of "
        "OpenMMLab's, and VMZ's"
    )


# VMZ builds on torchvision's VideoResNet, whose parts have numbers for names.
_VMZ_RULES = (
    (r"stem\.0\.", "conv1.conv."),
    (r"stem\.1\.", "conv1.bn."),
    (r"(layer\d+\.\d+\.conv[13]|layer\d+\.\d+\.downsample)\.0\.", r"\1.conv."),
    (r"(layer\d+\.\d+\.conv[13]|layer\d+\.\d+\.downsample)\.1\.", r"\1.bn."),
)
_VMZ_RULES_IR = (
    (r"(layer\d+\.\d+\.conv2)\.0\.", r"\1.0.conv."),
    (r"(layer\d+\.\d+\.conv2)\.1\.", r"\1.0.bn."),
)
_VMZ_RULES_IP = (
    (r"(layer\d+\.\d+\.conv2)\.0\.0\.", r"\1.0.conv."),
    (r"(layer\d+\.\d+\.conv2)\.0\.1\.", r"\1.0.bn."),
    (r"(layer\d+\.\d+\.conv2)\.0\.2\.", r"\1.1.conv."),
    (r"(layer\d+\.\d+\.conv2)\.1\.", r"\1.1.bn."),
)


def _from_vmz(name: str, is_ip: bool) -> str:
    if name.startswith("fc."):
        return f"cls_head.fc_cls.{name.removeprefix('fc.')}"
    for pattern, ours in _VMZ_RULES + (_VMZ_RULES_IP if is_ip else _VMZ_RULES_IR):
        renamed, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return f"backbone.{renamed}"
    return f"backbone.{name}"


_OTHERS = "Take the row's published checkpoint (`actionzoo weights <model>`), or train the row"


def _refuse_pyslowfast(path: Path, names: Iterable[str]) -> None:
    norms = [name for name in names if "_fuse.bn." in name]
    raise UserError(
        f"{path} is a PySlowFast checkpoint and was not loaded: its lateral connections are convolution, batch norm "
        f"and ReLU ({_some(norms)}), those of this zoo a convolution alone, so its weights would give other numbers "
        f"here. {_OTHERS}"
    )


def _refuse_pytorchvideo(path: Path, names: Iterable[str]) -> None:
    norms = [name for name in names if "multipathway_fusion.norm" in name]
    why = (
        f"its lateral connections are convolution, batch norm and ReLU ({_some(norms)}), those of this zoo a "
        "convolution alone, so its weights would give other numbers here"
        if norms
        else f"its layers are others than this zoo's ({_some(names)})"
    )
    raise UserError(f"{path} is a PyTorchVideo checkpoint and was not loaded: {why}. {_OTHERS}")


def _refuse_caffe2(path: Path) -> None:
    raise UserError(
        f"{path} is a Caffe2 checkpoint ({{'blobs': …}}), as PySlowFast's model zoo offers them, and was not loaded: "
        f"it holds numpy arrays of networks whose lateral connections are others than this zoo's. {_OTHERS}"
    )


def _some(names) -> str:
    names = list(names)
    if not names:
        return "none"
    return f"{len(names)}: {', '.join(names[:3])}" + (", …" if len(names) > 3 else "")


def _plain_name(path: str) -> str:
    """The file's name in a URL's path, with nothing in it that could lead elsewhere."""
    name = re.split(r"[/\\]", urllib.parse.unquote(path))[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[-150:] or "weights.pth"


def _promised(name: str) -> str:
    """The sha256's first eight digits that a name ends with, '' if it does not."""
    digits = re.search(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$", name)
    return digits[1] if digits else ""


def _is_what_its_name_says(path: Path) -> bool:
    promised = _promised(path.name)
    return not promised or sha256_of(path).startswith(promised)


def _refuse(path: Path) -> tuple[Path, str]:
    """Move a file that is not what its name says aside, to a name that tells what it is; gives that and the sha256."""
    found = sha256_of(path)
    kept = path.with_name(f"{path.stem}.refused-{found[:8]}{path.suffix}")
    os.replace(path, kept)
    return kept, found
