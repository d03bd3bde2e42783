"""Every reader of foreign input against damaged and hostile files: nothing but its clear errors, and those soon.

    python -m tests.fuzz --seconds 600 [--door NAME ...] [--seed N] [--keep FOLDER]

A new reader is one more entry of DOORS. What an input did wrong is printed, the input itself is kept in --keep.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save

from actionzoo.clips.quarantine import Quarantine
from actionzoo.clips.readers import Undecodable, VideoInfo, open_clip
from actionzoo.clips.readers import read as read_frames
from actionzoo.engine.checkpoint import load_checkpoint
from actionzoo.engine.tensor_file import read_header, read_tensors
from actionzoo.engine.views import read_views
from actionzoo.errors import MachineFault, UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.files.json_files import read_json, require_json
from actionzoo.jobs.view_scores import as_json, as_text, measure
from actionzoo.kinetics.annotations import class_names, read_annotations
from actionzoo.kinetics.archives import LISTED, check_archive, read_archive
from actionzoo.kinetics.check import check_data
from actionzoo.kinetics.download import parse_parts
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.folder import list_folder
from actionzoo.kinetics.frames import frame_spans
from actionzoo.kinetics.import_mmaction import MMActionSplit, import_mmaction
from actionzoo.kinetics.inventory import ArchivedFile, FetchedSplit, Inventory, read_inventory
from actionzoo.kinetics.manifest import (
    Clip,
    count_states,
    export_lists,
    label_map,
    read_classes,
    read_manifest,
    write_manifest,
)
from actionzoo.kinetics.mirrors import FolderMirror, listed_parts
from actionzoo.kinetics.part_records import PartClip, key_of, make_key, read_record, write_record
from actionzoo.kinetics.published_list import choose, read_published
from actionzoo.kinetics.shards import ShardWriter, index_path, read_index, read_member
from actionzoo.kinetics.synthetic import write_archive
from actionzoo.kinetics.transcode import to_jpegs
from actionzoo.kinetics.transfer import Patience
from actionzoo.params import Params, load_params
from actionzoo.recipe import as_dict
from actionzoo.records import Benchmark, Metrics, Reproduction, RunRecord, TestResult
from actionzoo.report.error_analysis import read_error_analysis
from actionzoo.run_files import RunFiles
from actionzoo.weights.checkpoints import read_classes as read_names
from actionzoo.weights.formats import read_weights
from actionzoo.weights.identity import identify, record_beside
from actionzoo.weights.published import published_files
from tests import mutator
from tests.engine.view_files import views_file
from tests.kinetics.small_films import film
from tests.test_records import BENCHMARK, METRICS, RESULT, RUN

PROJECT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 10.0
"""For one input."""
MAX_MEMORY = 8 * 2**30
"""Address space beyond what the interpreter and torch have at the start; for the script."""


@dataclasses.dataclass(frozen=True)
class Door:
    """A reader of foreign input."""

    seeds: Callable[[Path], list[bytes]]
    """Valid inputs, by the project's own writers. The folder is the door's own, and stays for `enter`."""
    enter: Callable[[Path, bytes], None]
    structural: Sequence[mutator.Change] = ()
    clear: tuple[type[BaseException], ...] = (UserError,)
    """What it may raise. A MachineFault is never clear: the machine is sound, the input is not."""
    in_child: bool = False
    """In a process of its own: decoders may crash and hang, which loaders count on."""
    is_slow: bool = False
    """One input takes a tenth of a second, or more."""


@dataclasses.dataclass(frozen=True)
class Finding:
    door: str
    what: str
    place: str
    """The project's last frame: file, line, function."""
    data: bytes

    def text(self) -> str:
        return f"{self.door}: {self.what[:300]} ({self.place})"

    @property
    def kind(self) -> tuple[str, str, str]:
        """Findings of one kind have one cause."""
        return self.door, self.what.partition(":")[0], self.place


class TooLong(BaseException):
    """An input took more than MAX_SECONDS."""


def knock(name: str, folder: Path, seeds: list[bytes], seed: str) -> Finding | None:
    """One mutated input through the door."""
    door = DOORS[name]
    data = mutator.mutated(seeds, random.Random(seed), door.structural)
    fault = _in_child(door, folder, data) if door.in_child else _judge(door, folder, data)
    return Finding(name, *fault, data) if fault else None


def _judge(door: Door, folder: Path, data: bytes) -> tuple[str, str] | None:
    """What the door did wrong, and where; None if nothing."""
    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        try:
            door.enter(folder, data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except door.clear as error:
        if isinstance(error, MachineFault):
            return f"MachineFault: {error}", _last_frame(error)
        if "\n" in str(error).strip("\n") and len(str(error)) > 100_000:
            return f"a message of {len(str(error))} characters", _last_frame(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {error}", _last_frame(error)
    finally:
        signal.signal(signal.SIGALRM, before)
    if (took := time.monotonic() - began) > MAX_SECONDS:
        return f"it took {took:.0f} s", ""
    return None


def _interrupt(*_) -> None:
    raise TooLong(f"more than {MAX_SECONDS:.0f} s")


def _last_frame(error: BaseException) -> str:
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/src/actionzoo/" in frame.filename]
    frames = own or traceback.extract_tb(error.__traceback__)[-1:]
    return f"{frames[-1].filename.rpartition('/src/')[2]}:{frames[-1].lineno}, {frames[-1].name}"


def _in_child(door: Door, folder: Path, data: bytes) -> tuple[str, str] | None:
    """The same in a process of its own. One that dies or hangs is what the pool of loaders is for: no finding."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            os.write(send, pickle.dumps(_judge(door, folder, data))[:60_000])
        finally:
            os._exit(0)
    os.close(send)
    timer = threading.Timer(2 * MAX_SECONDS, os.kill, (child, signal.SIGKILL))
    timer.start()
    try:
        with os.fdopen(receive, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
    finally:
        timer.cancel()
    return pickle.loads(said) if said else None


# what the doors have in common


@functools.cache
def _shipped() -> Params:
    """As shipped, with the first row of each family: an unknown file is compared with the networks of all."""
    params = load_params(PROJECT / "params.yaml")
    rows = {recipe.model.family: row for row, recipe in reversed(params.recipes.items())}
    return dataclasses.replace(params, recipes={row: params.recipes[row] for row in rows.values()})


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _bytes_of(folder: Path, name: str, write: Callable[[Path], object]) -> bytes:
    """What a writer that takes a path writes."""
    path = folder / "seeds" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return path.read_bytes()


def _clips(**changes) -> list[Clip]:
    """Of both splits and of several states."""
    whole = {"state": "ok", "shard": "val/part_000.tar", "offset": 512, "size": 100, "num_frames": 10}
    whole |= {"width": 64, "height": 52, "fps": 25.0, "sha256": "0" * 64} | changes
    return [
        Clip(video_id="--QUuC4vJs0_000084_000094", split="val", label=0, class_name="climbing a rope", **whole),
        Clip(video_id="b'=ü", split="val", label=1, class_name="massaging person's head", **whole),
        Clip(video_id="c", split="train", label=1, class_name="massaging person's head", **whole),
        Clip(video_id="d", split="test", label=-1, class_name="", state="missing", reason="=not there, at all"),
        Clip(video_id="e", split="val", label=-1, class_name="", state="unlisted", sha256="1" * 64),
    ]


# settings and texts


def _params(folder: Path, data: bytes) -> None:
    _put(folder / "published.yaml", b"{}\n")
    params = load_params(_put(folder / "params.yaml", data))
    for row in params.recipes:
        params.recipe(row)


def _params_seeds(folder: Path) -> list[bytes]:
    """As shipped, and with few rows, of which more inputs a second are made."""
    whole = (PROJECT / "params.yaml").read_text()
    head, rows = whole.split("\nrecipes:\n", 1)
    first, *others = re.split(r"\n(?=  \w+:\n)", "\n" + rows)[1:]
    chosen = [first, next(row for row in others if "family: slowfast" in row)]
    names = [re.search(r"^  (\w+):$", row, re.MULTILINE)[1] for row in chosen]
    head = re.sub(r"demo_recipes: \[.*?\]", f"demo_recipes: [{', '.join(names)}]", head, flags=re.DOTALL)
    few = f"{head}\nrecipes:\n" + "\n".join(chosen) + "\n"
    return [few.encode()] * 4 + [whole.encode()]


def _published_yaml(folder: Path, data: bytes) -> None:
    _put(folder / "params.yaml", _few_recipes(folder))
    _put(folder / "published.yaml", data)
    params = load_params(folder / "params.yaml")
    for model in params.recipes:
        published_files(params, model)


def _few_recipes(folder: Path) -> bytes:
    return _params_seeds(folder)[0]


def _published_yaml_seeds(folder: Path) -> list[bytes]:
    models = yaml.safe_load(_few_recipes(folder))["recipes"]
    entries = re.split(r"\n\n(?=\w+:\n)", (PROJECT / "published.yaml").read_text(encoding="utf-8"))
    return ["\n\n".join(entry for entry in entries if entry.split(":")[0] in models).encode()]


ANNOTATION = (
    b"label,youtube_id,time_start,time_end,split,is_cc\nclimbing a rope,--QUuC4vJs0,84,94,val,0\n\"massaging person's "
    b"head\",abcdefghijk,0.0,10.0,val,1\n,'=lmnopqrstu,7,17,val,0\nyoga,own,,,val,0\n"
)


def _annotations(folder: Path, data: bytes) -> None:
    clips = read_annotations(_put(folder / "val.csv", data), "val")
    class_names(clips)
    for clip in clips:
        assert clip.video_id and "/" not in clip.video_id and "\0" not in clip.video_id, clip


PART_LIST = b"".join(
    b"https://s3.amazonaws.com/kinetics/400/val/part_%d.%s\n" % (n, b"tgz" if n % 5 else b"tar.gz") for n in range(12)
)


def _part_list(folder: Path, data: bytes) -> None:
    _put(folder / "val/k400_val_path.txt", data)
    parts = listed_parts(FolderMirror(folder, Patience(0, 0.0, threading.Event())), "val")
    assert all(0 <= number < 10**9 for number in parts), max(parts)


def _parts_asked_for(folder: Path, data: bytes) -> None:
    parse_parts(data.decode(errors="surrogateescape"))


def _inventory(folder: Path, data: bytes) -> None:
    """As resize and the check use it."""
    _put(folder / "inventory.json", data)
    inventory = read_inventory(folder)
    for split, fetched in inventory.splits.items():
        for number in fetched.parts:
            inventory.part(split, number)
        fetched.listed + 0
    for name, file in inventory.files.items():
        assert (file.size + 0, file.sha256.lower(), name.lower()) and not name.startswith("/")


INVENTORY = Inventory(
    {
        "annotations/val.csv": ArchivedFile(size=30, sha256="ab" * 32, etag="x"),
        "val/part_0.tar.gz": ArchivedFile(size=3, sha256="cd" * 32, members=4, etag='"1"', modified="yesterday"),
        "val/part_1.csv": ArchivedFile(size=3, sha256="cd" * 32, members=2),
    },
    {"val": FetchedSplit((0, 1), 2)},
)


# archives, shards, manifests


def _archive_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for mode, layout in (("", tarfile.GNU_FORMAT), ("gz", tarfile.PAX_FORMAT), ("bz2", tarfile.USTAR_FORMAT),
                         ("xz", tarfile.GNU_FORMAT), ("", tarfile.PAX_FORMAT), ("", tarfile.USTAR_FORMAT)):  # fmt: skip
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode=f"w:{mode}", format=layout) as archive:
            for name, size in (("a.mp4", 700), ("d/b-ü.mp4", 100), ("l" * 90 + ".mp4", 1500)):
                member = tarfile.TarInfo(name)
                member.size = size
                archive.addfile(member, io.BytesIO(random.Random(size).randbytes(size)))
        seeds.append(data.getvalue())
    return [*seeds, _bytes_of(folder, "part.tar.gz", lambda path: write_archive(path, {"x.mp4": b"x" * 3000}))]


def _archive(folder: Path, data: bytes) -> None:
    path = _put(folder / "part_0.tar.gz", data)
    found = list(read_archive(path))
    assert all(name and "/" not in name for name, _ in found), found
    assert check_archive(path)[0] == len(found)


def _video_list_seeds(folder: Path) -> list[bytes]:
    video = _put(folder / "videos/a b.mp4", b"not really")
    rows = [f'"a b","{hashlib.sha256(b"not really").hexdigest()}","{video}"', f'"\'=c","","{video}"']
    return [("\n".join([",".join(LISTED), *rows]) + "\n").encode()]


def _video_list(folder: Path, data: bytes) -> None:
    list(read_archive(_put(folder / "part_0.csv", data)))


def _index_seeds(folder: Path) -> list[bytes]:
    def write(path: Path) -> None:
        with ShardWriter(path.with_suffix(".tar")) as shard:
            for number in range(12):
                shard.add(f"img_{number}.jpg", b"x" * (100 + number))
        shutil.copy(index_path(path.with_suffix(".tar")), path)

    return [_bytes_of(folder, "x.npy", write)]


def _index(folder: Path, data: bytes) -> None:
    shard = folder / "x.tar"
    _put(index_path(shard), data)
    index = read_index(shard)
    assert index.dtype == np.int64 and index.ndim == 2
    for clip in _clips(offset=512, size=10_000, num_frames=5):
        if clip.is_usable:
            frame_spans(index, clip)


def _manifest_seeds(folder: Path) -> list[bytes]:
    return [_bytes_of(folder, "manifest.csv", lambda path: write_manifest(path, _clips()))]


def _manifest(folder: Path, data: bytes) -> None:
    clips = read_manifest(_put(folder / "manifest.csv", data))
    count_states(clips)
    label_map(clips)
    export_lists(clips, folder / "lists")


def _classes_beside(folder: Path, data: bytes) -> None:
    write_manifest(folder / "manifest.csv", _clips())
    _put(folder / "classes.txt", data)
    label_map(read_manifest(folder / "manifest.csv"))
    read_classes(folder / "classes.txt")
    read_names(folder / "classes.txt")


def _member_seeds(folder: Path) -> list[bytes]:
    with ShardWriter(folder / "val/part_000.tar") as shard:
        shard.add("a.mp4", b"x" * 1000)
    return _manifest_seeds(folder)


def _member(folder: Path, data: bytes) -> None:
    for clip in read_manifest(_put(folder / "manifest.csv", data)):
        if clip.is_usable and clip.shard.endswith("part_000.tar"):
            read_member(folder / "val/part_000.tar", clip.offset, clip.size)


KEY = make_key("fuzz")


def _record_seeds(folder: Path) -> list[bytes]:
    def write(path: Path) -> None:
        with ShardWriter(path.with_suffix(".tar")) as shard:
            shard.add("a.mp4", b"x" * 1000)
        clips = [PartClip(video_id="a", offset=512, size=1000), PartClip(video_id="b", error="timed out after 5 s")]
        write_record(path.with_suffix(".tar"), KEY, 5.0, clips, ffmpeg="7.1", unlisted=["x"])

    data = _bytes_of(folder, "part_000.json", write)
    for suffix in (".tar", ".idx.npy"):
        shutil.copy(folder / f"seeds/part_000{suffix}", folder / f"part_000{suffix}")
    return [data]


def _record(folder: Path, data: bytes) -> None:
    """As resize and frames use it."""
    _put(folder / "part_000.json", data)
    record = read_record(folder / "part_000.tar", KEY, 5.0)
    for clip in record.clips if record else ():
        assert isinstance(clip.video_id, str) and isinstance(clip.error, str) and clip.offset + clip.size >= 0
    assert isinstance(key_of(folder / "part_000.tar"), str)


# pictures


FILM = {"num_frames": 10, "height": 52, "width": 64}


def _film_seeds(folder: Path) -> list[bytes]:
    return [film(**FILM), film(**FILM, hold_every=3)]


def _read_clip(form: Path, clip: Clip) -> None:
    try:
        frames = read_frames(open_clip(form, clip), np.array([0, 9, 4]))
    except IndexError as error:  # what readers promise where the clip has fewer frames than the manifest says
        assert "are asked for, it has" in str(error), error
        return
    assert frames.shape == (3, 52, 64, 3) and frames.dtype == np.uint8, (frames.shape, frames.dtype)


def _video(folder: Path, data: bytes) -> None:
    path = _put(folder / "videos_64/a.mp4", data)
    changes = {"shard": str(path), "offset": 0, "size": len(data), "sha256": "", "num_frames": 10}
    _read_clip(folder / "videos_64", _clips(**changes)[0])


def _jpeg_seeds(folder: Path) -> list[bytes]:
    def write(path: Path) -> None:
        with ShardWriter(path) as shard:
            jpegs = to_jpegs(film(**FILM), qscale=5, timeout_seconds=60, scratch=folder / "scratch").frames
            for number, jpeg in enumerate(jpegs, 1):
                shard.add(f"a/img_{number:05d}.jpg", jpeg)

    data = _bytes_of(folder, "part_000.tar", write)
    (folder / "frames_64/val").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "seeds/part_000.idx.npy", folder / "frames_64/val/part_000.idx.npy")
    return [data]


def _jpegs(folder: Path, data: bytes) -> None:
    shard = _put(folder / "frames_64/val/part_000.tar", data)
    index = np.load(index_path(shard))
    (first, _), (last, size) = index[0].tolist(), index[-1].tolist()
    _read_clip(folder / "frames_64", _clips(offset=first, size=last + size - first)[0])


def _jpeg_index_seeds(folder: Path) -> list[bytes]:
    shard = _put(folder / "frames_64/val/part_000.tar", _jpeg_seeds(folder)[0])
    return [index_path(shard).read_bytes()]


def _jpeg_index(folder: Path, data: bytes) -> None:
    shard = folder / "frames_64/val/part_000.tar"
    index = np.load(folder / "seeds/part_000.idx.npy")
    (first, _), (last, size) = index[0].tolist(), index[-1].tolist()
    _put(index_path(shard), data)
    _read_clip(folder / "frames_64", _clips(offset=first, size=last + size - first)[0])


# one's own videos, lists of others


def _own_videos(root: Path) -> None:
    for name in ("train/yoga/a b.mp4", "train/zumba/c.mp4", "val/yoga/d.mp4"):
        _put(root / name, name.encode())


def _list(folder: Path, root: Path) -> None:
    for name in ("archive", "scratch"):
        shutil.rmtree(folder / name, ignore_errors=True)
    execution = Execution(scratch=folder / "scratch")
    list_folder(f"folder:{root}", DataFolder.at(folder / "archive"), execution, splits=("train", "val"), parts="all")
    read_inventory(folder / "archive")
    for split in ("train", "val"):
        listed = {clip.video_id for clip in read_annotations(folder / f"archive/annotations/{split}.csv", split)}
        for path in (folder / "archive").glob(f"{split}/part_*.csv"):
            assert {name for name, data in read_archive(path) if data} <= listed


def _folder_table_seeds(folder: Path) -> list[bytes]:
    _own_videos(folder / "own")
    return [
        b'label,video\nyoga,train/yoga/a b.mp4\n"zum\'ba, or so",train/zumba/c.mp4\n',
        b"label,youtube_id,time_start,time_end,split\nyoga,a b,,,train\nzumba,c,,,train\n",
        b"label,youtube_id\nyoga,abcdefghijk\nzumba,c\n",
    ]


def _folder_table(folder: Path, data: bytes) -> None:
    _put(folder / "own/train.csv", data)
    _list(folder, folder / "own")


def _folder_names(folder: Path, data: bytes) -> None:
    """Files and class folders by odd names."""
    root = folder / "own"
    shutil.rmtree(root, ignore_errors=True)
    _own_videos(root)
    draw = random.Random(data)
    for number in range(4):
        inner = os.path.join(os.fsencode(root), b"train", mutator.odd_name(draw))
        os.makedirs(inner, exist_ok=True)
        for name in (mutator.odd_name(draw) + b".mp4", data[:60].replace(b"/", b"_").replace(b"\0", b"_") + b".mkv"):
            with open(os.path.join(inner, name), "wb") as file:
                file.write(b"%d" % number)
    _list(folder, root)


def _adopt(folder: Path, list_file: Path, classes: Path | None, form: str) -> None:
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "own").mkdir(exist_ok=True)
    import_mmaction(
        folder / "data" / form,
        MMActionSplit("val", list_file, folder / "own", classes),
        inspect=lambda paths: [VideoInfo(10, 64, 52, 25.0) for _ in paths],
        max_bad_share=1.0,
    )
    label_map(read_manifest(folder / "data" / form / "manifest.csv"))


def _adopt_seeds(folder: Path) -> list[bytes]:
    for name in ("yoga/a b.mp4", "zumba/c.mp4"):
        _put(folder / "own" / name, name.encode())
    return [b"yoga/a b.mp4 0\nzumba/c.mp4 1\n"]


def _adopt_videos(folder: Path, data: bytes) -> None:
    _adopt(folder, _put(folder / "val.txt", data), None, "videos_64")


def _adopt_frames(folder: Path, data: bytes) -> None:
    _adopt(folder, _put(folder / "val.txt", data), None, "frames_64")


def _adopt_frames_seeds(folder: Path) -> list[bytes]:
    for name in ("yoga/a b", "zumba/c"):
        _put(folder / "own" / name / "img_00001.jpg", name.encode())
    return [b"yoga/a b 10 0\nzumba/c 1 1\n"]


def _adopt_classes(folder: Path, data: bytes) -> None:
    _put(folder / "val.txt", b"yoga/a b.mp4 0\nzumba/c.mp4 1\n")
    _adopt(folder, folder / "val.txt", _put(folder / "classes.txt", data), "videos_64")


CLASSES = ["climbing a rope", "massaging person's head"]


def _published(folder: Path, data: bytes) -> None:
    published = read_published(_put(folder / "list.txt", data))
    choose(
        published, [clip for clip in _clips() if clip.split == "val"], ["climbing a rope", "massaging person's head"]
    )
    read_published(folder / "list.txt", _put(folder / "map.txt", b"climbing a rope\nmassaging persons head\n"))


def _label_map_seeds(folder: Path) -> list[bytes]:
    return ["\n".join(CLASSES).encode(), b"0 climbing a rope\n1 massaging persons_head\n"]


def _label_map(folder: Path, data: bytes) -> None:
    listed = _put(folder / "list.txt", b"--QUuC4vJs0_000084_000094 300 0\nc 20 1\n")
    published = read_published(listed, _put(folder / "map.txt", data))
    choose(
        published, [clip for clip in _clips() if clip.split == "val"], ["climbing a rope", "massaging person's head"]
    )


# weights and scores


def _state() -> dict[str, torch.Tensor]:
    names = ("backbone.conv1.conv.weight", "backbone.conv1.bn.running_mean", "cls_head.fc_cls.bias")
    state = {name: torch.arange(6, dtype=torch.float32).view(2, 3) for name in names}
    return state | {"backbone.conv1.bn.num_batches_tracked": torch.tensor(3)}


def _weights_seeds(folder: Path) -> list[bytes]:
    content = {"meta": {"epoch": 3, "row": "x", "model": {"family": "csn"}, "val_top1": 0.5}, "state_dict": _state()}
    zipped, legacy, bare = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(content, zipped)
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    torch.save({name.removeprefix("backbone."): tensor for name, tensor in _state().items()}, bare)
    texts = {"format": "pt", "meta": json.dumps({"row": "x"}), "classes": json.dumps(["a", "b"])}
    return [zipped.getvalue(), legacy.getvalue(), bare.getvalue(), save(_state(), texts)]


def _weights(folder: Path, data: bytes) -> None:
    path = _put(folder / "w.pth", data)
    weights = read_weights(path)
    identify(path, weights.meta, weights.shapes, params=_shipped())


def _tensor_seeds(folder: Path) -> list[bytes]:
    return [_bytes_of(folder, "views.safetensors", lambda path: views_file(path))]


def _tensors(folder: Path, data: bytes) -> None:
    path = _put(folder / "x.safetensors", data)
    read_header(path)
    for tensor in read_tensors(path)[0].values():
        tensor.sum()


def _scores(folder: Path, data: bytes) -> None:
    path = _put(folder / "x.safetensors", data)
    read_views(path)
    made = measure([path])
    as_text(made)
    as_json(made)


def _record_beside(folder: Path, data: bytes) -> None:
    _put(folder / "recipe.json", data)
    record = record_beside(folder / "best.pth")
    identify(folder / "best.pth", {}, {}, params=_shipped(), record=record)


def _record_beside_seeds(folder: Path) -> list[bytes]:
    params = _shipped()
    row = min(params.recipes)
    recipe = as_dict(params.recipes[row])
    best = _put(folder / "best.pth", b"weights")
    files = {"best.pth": {"md5": hashlib.md5(best.read_bytes()).hexdigest()}}
    return [
        json.dumps({"row": row, "dataset": "demo", "recipe": recipe, "classes": ["a", "b"], "files": files}).encode()
    ]


RECORDS = (RunRecord, Metrics, Benchmark, Reproduction, TestResult)


def _run_files_seeds(folder: Path) -> list[bytes]:
    published = {"published_top1": 76.0, "published_top5": 92.0, "verdict": "reproduced", "why": "", "file": "a"}
    reproduced = {"ckpt": METRICS.counts() | published | {"sha256": "ab"}}
    records = (RUN.as_json(), METRICS.as_json(), BENCHMARK.as_json(), reproduced, RESULT.as_json())
    return [json.dumps(record).encode() for record in records]


def _run_files(folder: Path, data: bytes) -> None:
    """Each record of a run; result.json has its clips behind the first line."""
    _put(folder / "run.json", data)
    _put(folder / "result.json", data.rstrip()[:-1] + b', "clips": {\n}}\n')
    faults = []
    for kind in RECORDS:
        try:
            record = kind.read(folder / ("result.json" if kind is TestResult else "run.json"))
        except UserError as error:
            faults.append(error)
        else:
            json.dumps(record.as_json())
    if faults:
        raise faults[0]


def _json(folder: Path, data: bytes) -> None:
    path = _put(folder / "x.json", data)
    assert isinstance(read_json(path), dict)
    require_json(path, "make it anew")


def _quarantine(folder: Path, data: bytes) -> None:
    quarantine = Quarantine(_put(folder / "quarantine.json", data), 10.0)
    for clip in _clips():
        reason = quarantine.reason(clip)
        assert reason is None or isinstance(reason, str)
    quarantine.add(_clips()[0], "it hung")


QUARANTINE = {"val/--QUuC4vJs0_000084_000094": {"reason": "it hung", "timeout_seconds": 10.0}}


def _errors(folder: Path, data: bytes) -> None:
    files = RunFiles(folder, "demo", "row")
    _put(files.errors / "errors.json", data)
    _put(files.plot("classes"), b"class,clips,right\nyoga,2,1\n")
    _put(files.plot("confusion"), b"actual,predicted\nyoga,yoga\n")
    _put(files.plot("views"), b"views,top1,top5\n1,0.5,1.0\n")
    read_error_analysis(files)


# data check


def _check_seeds(folder: Path, what: str) -> list[bytes]:
    data = folder / "seeds/demo"
    part = _put(data / "archive/val/part_0.tar.gz", b"abc")
    file = dataclasses.replace(INVENTORY.files["val/part_0.tar.gz"], size=part.stat().st_size)
    inventory = Inventory({"val/part_0.tar.gz": file}, {"val": FetchedSplit((0,), 1)})
    _put(data / "archive/inventory.json", inventory.to_bytes())
    record = _record_seeds(folder)[0]
    for suffix in (".tar", ".idx.npy", ".json"):
        source = folder / f"seeds/part_000{suffix}"
        _put(data / f"videos_256/val/part_000{suffix}", source.read_bytes())
    return [record if what == "record" else (data / "archive/inventory.json").read_bytes()]


def _check(folder: Path, data: bytes, name: str) -> None:
    shutil.rmtree(folder / "demo", ignore_errors=True)
    shutil.copytree(folder / "seeds/demo", folder / "demo")
    _put(folder / "demo" / name, data)
    outside = _put(folder / "part_9.tar.gz", b"not the project's")
    try:
        check_data(DataFolder.at(folder / "demo")).text()
    finally:
        assert outside.exists(), "a file outside was removed"


DOORS: dict[str, Door] = {
    "params": Door(_params_seeds, _params, mutator.YAML, is_slow=True),
    "published_yaml": Door(_published_yaml_seeds, _published_yaml, mutator.YAML, is_slow=True),
    "annotations": Door(lambda folder: [ANNOTATION], _annotations, mutator.TABLE),
    "part_list": Door(lambda folder: [PART_LIST], _part_list, mutator.TABLE),
    "parts_asked_for": Door(lambda folder: [b"0-9", b"0,3, 5-7", b"all"], _parts_asked_for),
    "inventory": Door(lambda folder: [INVENTORY.to_bytes()], _inventory, mutator.JSON),
    "archive": Door(_archive_seeds, _archive, mutator.TAR),
    "video_list": Door(_video_list_seeds, _video_list, mutator.TABLE),
    "index": Door(_index_seeds, _index, mutator.NPY),
    "manifest": Door(_manifest_seeds, _manifest, mutator.TABLE),
    "classes": Door(lambda folder: [b"climbing a rope\nmassaging person's head\n"], _classes_beside, mutator.TABLE),
    "member": Door(_member_seeds, _member, mutator.TABLE),
    "record": Door(_record_seeds, _record, mutator.JSON),
    "video": Door(_film_seeds, _video, mutator.MP4, (UserError, Undecodable), in_child=True, is_slow=True),
    "jpegs": Door(_jpeg_seeds, _jpegs, mutator.TAR, (UserError, Undecodable), in_child=True, is_slow=True),
    "jpeg_index": Door(
        _jpeg_index_seeds, _jpeg_index, mutator.NPY, (UserError, Undecodable), in_child=True, is_slow=True
    ),
    "folder_table": Door(_folder_table_seeds, _folder_table, mutator.TABLE),
    "folder_names": Door(lambda folder: [b"a b.mp4", "ü(1)".encode()], _folder_names, is_slow=True),
    "adopt_videos": Door(_adopt_seeds, _adopt_videos, mutator.TABLE),
    "adopt_frames": Door(_adopt_frames_seeds, _adopt_frames, mutator.TABLE),
    "adopt_classes": Door(lambda folder: _adopt_seeds(folder) and [b"yoga\nzumba\n"], _adopt_classes, mutator.TABLE),
    "published_list": Door(
        lambda folder: [b"--QUuC4vJs0_000084_000094 300 0\ncl/c.mp4 20 1\n"], _published, mutator.TABLE
    ),
    "label_map": Door(_label_map_seeds, _label_map, mutator.TABLE),
    "weights": Door(_weights_seeds, _weights, (*mutator.ZIP, mutator.change_safetensors, mutator.change_metadata)),
    "tensors": Door(_tensor_seeds, _tensors, mutator.SAFETENSORS),
    "scores": Door(_tensor_seeds, _scores, (mutator.change_safetensors, *[mutator.change_metadata] * 3)),
    "checkpoint": Door(
        lambda folder: _weights_seeds(folder)[:2],
        lambda folder, data: load_checkpoint(_put(folder / "latest.pth", data)) and None,
        mutator.ZIP,
    ),
    "recipe_beside": Door(_record_beside_seeds, _record_beside, mutator.JSON),
    "run_files": Door(_run_files_seeds, _run_files, mutator.JSON),
    "json": Door(lambda folder: [INVENTORY.to_bytes()], _json, mutator.JSON),
    "quarantine": Door(lambda folder: [json.dumps(QUARANTINE).encode()], _quarantine, mutator.JSON),
    "errors": Door(
        lambda folder: [b'{"format_version": 3, "pairs": [], "worst": [{"video_id": "a"}]}'], _errors, mutator.JSON
    ),
    "check_record": Door(
        lambda folder: _check_seeds(folder, "record"),
        lambda folder, data: _check(folder, data, "videos_256/val/part_000.json"),
        mutator.JSON,
    ),
    "check_inventory": Door(
        lambda folder: _check_seeds(folder, "inventory"),
        lambda folder, data: _check(folder, data, "archive/inventory.json"),
        mutator.JSON,
    ),
}


def knocks(name: str, folder: Path, seed: int) -> Iterator[Finding | None]:
    """One finding or None for each input, without end. A valid input comes first: it must pass."""
    folder.mkdir(parents=True, exist_ok=True)
    door = DOORS[name]
    seeds = door.seeds(folder)
    for data in seeds:
        fault = _in_child(door, folder, data) if door.in_child else _judge(door, folder, data)
        yield Finding(name, *fault, data) if fault else None
    for number in itertools.count():
        yield knock(name, folder, seeds, f"{seed}/{name}/{number}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for all doors together (%(default)s)")
    parser.add_argument("--door", nargs="+", choices=DOORS, default=list(DOORS), help="all of them if none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs of findings")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch and numpy tell of odd files, too
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, resource.RLIM_INFINITY))
    counts: collections.Counter[str] = collections.Counter()
    findings: dict[tuple[str, str, str], list[Finding]] = collections.defaultdict(list)
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as scratch:
        inputs = {name: knocks(name, Path(scratch) / name, arguments.seed) for name in arguments.door}
        spent = dict.fromkeys(inputs, 0.0)
        while time.monotonic() < end:
            name = min(spent, key=spent.__getitem__)  # each door has the same time
            began = time.monotonic()
            finding = next(inputs[name])
            spent[name] += time.monotonic() - began
            counts[name] += 1
            if finding:
                same = findings[finding.kind]
                same.append(finding)
                if len(same) == 1:
                    print(finding.text(), flush=True)
                    if arguments.keep:
                        print(f"  kept as {_put(arguments.keep / f'{name}-{len(findings):03d}', finding.data)}")
    for name in arguments.door:
        wrong = sum(len(same) for (door, *_), same in findings.items() if door == name)
        print(f"{name:16} {counts[name]:7,} inputs{f', {wrong} findings' if wrong else ''}")
    print(f"{sum(counts.values()):,} inputs in {arguments.seconds:.0f} s, {len(findings)} kinds of findings")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
