"""The data stages with the settings of params.yaml: download, resize, extract frames. No torch."""

import contextlib
import os
import shutil
from pathlib import Path

from ..errors import UserError
from ..kinetics.download import TERMS
from ..kinetics.download import download as download_mirror
from ..kinetics.execution import Execution
from ..kinetics.folder import FOLDER, list_folder
from ..kinetics.frames import extract_frames
from ..kinetics.resize import VideoFormat
from ..kinetics.resize import resize as resize_parts
from ..kinetics.serve import serve
from ..kinetics.synthetic import Mirror, make_mirror
from ..params import Params
from ..process.progress import Progress, progress
from ..recipe import as_dict


def download(params: Params) -> str:
    """Fetch the chosen data set into <data root>/<dataset>/archive, or list the videos of a folder there.

    Returns the stage's closing line. Raises UserError.
    """
    _check_links(params, "archive")
    with _source(params) as source, progress("bytes") as on_progress:
        jobs = min(8, 2 * params.runtime.num_jobs)  # two connections per CPU, and no more than a mirror bears
        fetch = list_folder if source.startswith(FOLDER) else download_mirror
        return fetch(
            source,
            params.data_folder() / "archive",
            Execution(scratch=_download_scratch(params), jobs=jobs, on_progress=on_progress),
            splits=params.dataset.splits,
            parts=params.dataset.parts,
        )


def resize(params: Params, short_side: int, scheduler: str | None = None, *, force: bool = False) -> str:
    """Re-encode <data root>/<dataset>/archive at `short_side` pixels into videos_<short_side>.

    `scheduler` is the address of a Dask scheduler; None: as params.yaml says. `force` makes finished shards anew, too.
    Returns the stage's closing line.
    """
    data = params.data_folder()
    _check_links(params, f"videos_{short_side}")
    with progress("clips") as on_progress:
        return resize_parts(
            data / "archive",
            data / f"videos_{short_side}",
            _execution(params, "resize", scheduler, force, on_progress),
            video_format=VideoFormat(short_side, params.prepare.encode),
            max_bad_share=params.dataset.max_bad_share,
            min_frames=params.prepare.min_frames,
        )


def frames(params: Params, short_side: int, scheduler: str | None = None, *, force: bool = False) -> str:
    """Extract JPEG frames of <data root>/<dataset>/videos_<short_side> into frames_<short_side>.

    `scheduler` is the address of a Dask scheduler; None: as params.yaml says. `force` makes finished shards anew, too.
    Returns the stage's closing line.
    """
    data = params.data_folder()
    _check_links(params, f"frames_{short_side}")
    with progress("clips") as on_progress:
        return extract_frames(
            data / f"videos_{short_side}",
            data / f"frames_{short_side}",
            _execution(params, "frames", scheduler, force, on_progress),
            qscale=params.prepare.jpeg.qscale,
            max_bad_share=params.dataset.max_bad_share,
        )


def _execution(params: Params, stage: str, scheduler: str | None, force: bool, on_progress: Progress) -> Execution:
    return Execution(
        scratch=params.data_scratch(stage),
        jobs=params.runtime.num_jobs,
        clip_timeout_seconds=params.runtime.clip_timeout_seconds,
        scheduler=scheduler or params.runtime.scheduler_address,
        force=force,
        on_progress=on_progress,
    )


def _download_scratch(params: Params) -> Path:
    """The stage's folder for partial files and records of fetched ones.

    Records of the same data set are taken over once, so that nothing is fetched again: those that versions without a
    data root kept in <project>/.scratch, and those of data/ if data.root now is another folder, to which the archives
    were moved. A record says nothing about an archive that is not there, or has another size.
    """
    scratch, older = params.data_scratch("download"), params.workspace / ".scratch" / "download" / params.name
    default = params.workspace / "data" / ".scratch" / "download" / params.name
    if scratch.exists():
        return scratch
    scratch.parent.mkdir(parents=True, exist_ok=True)
    if older.is_dir():
        shutil.move(older, scratch)
    elif default.is_dir():
        partial = scratch.with_name(f".{scratch.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("records", "videos"):
            if (default / name).is_dir():
                shutil.copytree(default / name, partial / name)
        if partial.is_dir():
            os.rename(partial, scratch)
    return scratch


def _check_links(params: Params, *names: str) -> None:
    """Raises UserError if an out would lie behind a symbolic link: DVC would refuse it once the work is done."""
    folder = params.folder("data")
    for path in (folder.parent, folder, *(folder / name for name in names)):
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link to {os.readlink(path)}, and DVC tracks no file behind one; remove it, "
                f"and set data.root in {params.path} to the folder that holds {params.name}/"
            )


def _source(params: Params) -> contextlib.AbstractContextManager[str]:
    """The address of the mirror or folder; a synthetic mirror is made first, and served on loopback."""
    dataset = params.dataset
    if dataset.source == "synthetic:":
        if dataset.synthetic is None:
            raise UserError(
                f"{params.path}: datasets.{params.name}.synthetic is missing; source synthetic: needs sizes"
            )
        root = params.workspace / ".scratch" / "mirror" / params.name
        with progress("clips") as on_progress:
            make_mirror(
                root, Mirror(**as_dict(dataset.synthetic)), jobs=params.runtime.num_jobs, on_progress=on_progress
            )
        return serve(root)
    if not dataset.source:
        raise UserError(
            f"{params.path}: datasets.{params.name}.source is empty; write the mirror's URL or folder there, or "
            "folder:///path/to/videos, or set the environment variable ACTIONZOO_SOURCE"
        )
    if not dataset.source.startswith(FOLDER):
        print(TERMS)
    return contextlib.nullcontext(dataset.source)
