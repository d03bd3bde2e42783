"""The page of a data set: counts, duplicates and leaks, lists with their hashes, and pictures of every class.

    report/<dataset>/data.html         the page; opens from disk
                     data.json         the same facts for programs
                     data/train.txt …  lists in MMAction2's format, and label_map.txt
                     data/classes.jpg  a picture of each class
                     data/class_007.jpg  the middle frames of some clips of a class

Equal data give equal files: no clock, no absolute path.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files.atomic import atomic_write
from ..files.data_folder import DataFolder
from ..kinetics.manifest import STATES, export_lists, read_manifest
from ..kinetics.overview import SHOWN, Overview, as_json, difference, ffmpeg_text, survey
from ..kinetics.shard_list import check_shards
from ..process.progress import Progress
from .class_pictures import (
    THUMBNAIL_HEIGHT,
    THUMBNAIL_WIDTH,
    Sheet,
    choose_clips,
    draw_sheets,
    thumbnail_position,
)
from .html import page_templates


def write_data_report(
    data: DataFolder, form: str, out: Path, *, pictures: int = 12, jobs: int = 1, on_progress: Progress | None = None
) -> Overview:
    """Survey `form` of the data set in `data`, write the page and its files below `out`, and return the survey.

    `pictures` is the number of clips shown per class, 0 for none; `jobs` threads decode them. Raises UserError if the
    form does not exist.
    """
    clips = read_manifest((data / form).manifest)
    fresh, files = out / ".data.partial", out / "data"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        overview = survey(data, form, clips, export_lists(clips, fresh))
        sheets = []
        if pictures:
            check_shards((data / form).stored, (clip.stored() for clip in clips if clip.is_usable))
            chosen = choose_clips(clips, len(overview.class_states), pictures)
            sheets = draw_sheets(chosen, (data / form).stored, fresh, jobs=jobs, on_progress=on_progress)
        shutil.rmtree(files, ignore_errors=True)
        os.replace(fresh, files)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _write(out / "data.json", as_json(overview))
    _write(out / "data.html", _html(overview, sheets))  # last: if it exists, the others are complete
    return overview


def _html(overview: Overview, sheets: Sequence[Sheet]) -> str:
    jinja = page_templates()
    jinja.filters["gigabytes"] = lambda size: f"{size / 1e9:,.2f}"
    groups = [
        ("Videos with several clips in one split", overview.doubles),
        ("Equal bytes within one split", overview.same_bytes),
        ("Videos with clips in two splits", overview.leaks),
        ("Equal bytes in two splits", overview.leaked_bytes),
    ]
    return jinja.get_template("data.html.j2").render(
        overview=overview,
        names=[*overview.classes, "(no label)"],
        states=STATES,
        difference=difference,
        ffmpeg_text=ffmpeg_text,
        groups=groups,
        shown=SHOWN,
        sheets={sheet.label: sheet for sheet in sheets},
        thumbnail_position=thumbnail_position,
        thumbnail_size=(THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT),
        sum_states=_sum_states,
    )


def _sum_states(states: Mapping[str, Mapping[str, int]], *names: str) -> int:
    """The clips of a class in these states, over all splits."""
    return sum(counts[name] for counts in states.values() for name in names)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
