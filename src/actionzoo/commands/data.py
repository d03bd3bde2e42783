"""The chosen data set: look at it, verify it, import one that is prepared already."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer

from .arguments import FORMS, Form, Split, one_of, whole
from .usage import Command, Group

app = typer.Typer(cls=Group, no_args_is_help=True, epilog="example: actionzoo data states videos_256")
command = partial(app.command, cls=Command, rich_help_panel="Data")

FORM_HELP = ", ".join(FORMS)
FormName = Annotated[Form, typer.Argument(metavar="FORM", parser=one_of(FORMS), help=FORM_HELP)]


@command(epilog="example: actionzoo data report videos_256")
def report(
    form: Annotated[
        Form | None,
        typer.Argument(metavar="FORM", parser=one_of(FORMS), help=f"{FORM_HELP}; default: the first that is there"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=Path, help="folder to write (default report/<dataset>)")
    ] = None,
    pictures: Annotated[int, typer.Option(metavar="N", parser=whole(0), help="clips shown of each class")] = 12,
) -> None:
    """Write a page about a prepared form; print its gist.

    The page has counts, duplicates, leaks between splits, lists and pictures.
    """
    from ..errors import UserError
    from ..kinetics.overview import summary
    from ..params import load_params
    from ..process.progress import progress
    from ..report.data_page import write_data_report

    params = load_params()
    data, out = params.data_folder(), out or params.folder("report")
    form = form or next((form for form in FORMS if (data / form).manifest.is_file()), None)
    if form is None:
        raise UserError(
            f"{data.tracked} has none of {', '.join(FORMS)} yet; run `dvc repro resize@256`, or another of them"
        )
    with progress("clips") as on_progress:
        overview = write_data_report(
            data, form, out, pictures=pictures, jobs=params.runtime.num_jobs, on_progress=on_progress
        )
    print(f"{summary(overview)}\n{out / 'data.html'}")


@command(epilog="example: actionzoo data check --sample 20")
def check(
    sample: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="check N files drawn at random (default: all)")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", parser=whole(0), help="draw the same sample again")] = None,
    delete_unused: Annotated[
        bool, typer.Option("--delete-unused", help="delete the shards that no manifest here names; asks nothing")
    ] = False,
) -> None:
    """Verify archives and shards by their hashes.

    A file that fails is made again by its stage, and no other. Shards that no manifest of this workspace names are
    listed with their sizes.
    """
    from ..kinetics.check import check_data, delete_shards, unused_shards, unused_text
    from ..params import load_params
    from ..process.progress import progress

    params = load_params()
    data = params.data_folder()
    with progress("bytes") as on_progress:
        checked = check_data(data, sample=sample, seed=seed, on_progress=on_progress)
    unused = unused_shards(data, params.workspace)
    if delete_unused:
        delete_shards(unused, params.data_scratch)
    print(checked.text())
    if unused:
        print(unused_text(unused, deleted=delete_unused))
    if checked.damages:
        sys.exit(1)


@command(
    "import-mmaction",
    epilog="""\
example: actionzoo data import-mmaction videos_256 \\
             kinetics400_val_list_videos.txt videos_val --split val""",
)
def import_mmaction(
    form: FormName,
    list_file: Annotated[
        Path,
        typer.Argument(
            metavar="LIST", parser=Path, help="lines `path label`, for frames `folder number-of-frames label`"
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=Path, help="folder that the list's paths start in")
    ],
    split: Annotated[
        Split,
        typer.Option(
            metavar="SPLIT", parser=one_of(get_args(Split)), help="train, val or test: what the list holds (required)"
        ),
    ],
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=Path, help="a class name per line, in the order of the labels")
    ] = None,
) -> None:
    """Use videos or frames prepared for MMAction2 in place.

    Indexes the files where they lie and writes their manifest; nothing is copied."""
    from ..clips.inspect import inspect_clips
    from ..kinetics.import_mmaction import MMActionSplit
    from ..kinetics.import_mmaction import import_mmaction as index_lists
    from ..params import load_params
    from ..process.progress import progress

    params = load_params()
    timeout_seconds = params.runtime.clip_timeout_seconds
    inspect = partial(inspect_clips, workers=params.runtime.num_workers, timeout_seconds=timeout_seconds)
    with progress("clips") as on_progress:
        print(
            index_lists(
                params.folder("data") / form,
                MMActionSplit(split, list_file, folder, classes),
                inspect=inspect,
                max_bad_share=params.dataset.max_bad_share,
                on_progress=on_progress,
            )
        )


@command(epilog="example: actionzoo data states videos_256")
def states(form: FormName) -> None:
    """Count the clips of a prepared form by split and state, and its shards by ffmpeg's version."""
    from ..kinetics.manifest import count_states, read_manifest
    from ..kinetics.overview import ffmpeg_text
    from ..kinetics.shard_list import SHARDS, ffmpeg_versions, read_shards

    manifest = _manifest(form)
    counts = count_states(read_manifest(manifest))
    names = list(next(iter(counts.values()), {}))
    print(f"{'split':8}" + "".join(f"{name:>10}" for name in names) + f"{'listed':>10}")
    for split, by_state in counts.items():
        listed = sum(count for name, count in by_state.items() if name != "unlisted")
        print(f"{split:8}" + "".join(f"{by_state[name]:>10,}" for name in names) + f"{listed:>10,}")
    if versions := ffmpeg_versions(read_shards(manifest.with_name(SHARDS))):
        print(ffmpeg_text(versions))


@command(epilog="example: actionzoo data lists videos_256 lists/")
def lists(
    form: FormName,
    out: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=Path, help="folder for <split>.txt and label_map.txt")
    ],
) -> None:
    """Export lists and label map in MMAction2's format."""
    from ..kinetics.manifest import export_lists, read_manifest

    for path in export_lists(read_manifest(_manifest(form)), out):
        print(path)


def _manifest(form: Form) -> Path:
    from ..params import load_params

    return (load_params().data_folder() / form).manifest
