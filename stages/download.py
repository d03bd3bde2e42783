"""Fetch the chosen data set. Reads its mirror; writes data/<dataset>/archive/: parts, annotations, replacements.

Where the source is a folder of one's own videos they stay there, and the parts are lists of them.
"""

import argparse
import contextlib
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.kinetics.download import TERMS, download
from actionzoo.kinetics.folder import FOLDER, list_folder
from actionzoo.kinetics.serve import serve
from actionzoo.kinetics.synthetic import Mirror, make_mirror
from actionzoo.params import Params, load_params
from actionzoo.process.progress import progress
from actionzoo.process.stage import stage
from actionzoo.recipe import as_dict


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/download.py").parse_args()
    with stage("download"):
        params = load_params()
        scratch = Path(".scratch") / "download" / params.name
        with _source(params) as source, progress("bytes") as tell:
            take = list_folder if source.startswith(FOLDER) else download
            print(
                take(
                    source,
                    params.folder("data") / "archive",
                    splits=params.dataset.splits,
                    parts=params.dataset.parts,
                    jobs=min(8, 2 * params.runtime.num_jobs),
                    scratch=scratch,
                    on_progress=tell,
                )
            )


def _source(params: Params):
    """The mirror's address, or the folder's; a made-up mirror is made now, and served on loopback."""
    dataset = params.dataset
    if dataset.source == "synthetic:":
        if dataset.synthetic is None:
            raise UserError(
                f"{params.path}: datasets.{params.name}.synthetic is missing; source synthetic: needs sizes"
            )
        root = Path(".scratch") / "mirror" / params.name
        with progress("clips") as tell:
            make_mirror(root, Mirror(**as_dict(dataset.synthetic)), jobs=params.runtime.num_jobs, on_progress=tell)
        return serve(root)
    if not dataset.source:
        raise UserError(
            f"{params.path}: datasets.{params.name}.source is empty; write the mirror's URL or folder there, or "
            "folder:///path/to/videos, or set the environment variable ACTIONZOO_SOURCE"
        )
    if not dataset.source.startswith(FOLDER):
        print(TERMS)
    return contextlib.nullcontext(dataset.source)


if __name__ == "__main__":
    main()
