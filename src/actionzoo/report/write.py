"""The report stage: the zoo's tables, page and run links of the chosen data set."""

from ..files.kept import drop_cached
from ..files.locks import locked
from ..kinetics.manifest import count_states, read_manifest
from ..params import Params
from ..run_files import RunFiles
from .page import write_page
from .results import model_entries, read_report
from .run_links import write_run_links
from .tables import write_tables


def write_report(params: Params) -> str:
    """Write report/<dataset>/zoo.{md,zh.md,html,json} and runs.js; return the stage's closing line.

    Waits for another process that writes the same report. Raises UserError for metrics or a manifest that cannot be
    read.
    """
    data, out = params.folder("data"), params.folder("report")
    lock = params.root / ".scratch" / "report" / f"{params.name}.lock"
    with locked(lock, waiting=f"another process is writing the report of {params.name}; waiting for it"):
        states = {
            form: count_states(read_manifest(data / form / "manifest.csv")) for form in ("videos_256", "videos_320")
        }
        report = read_report(
            dataset=params.name, entries=model_entries(params), root=params.root, out=out, clip_states=states
        )
        write_tables(report, out)
        write_page(report, out)
        write_run_links(params)
        for model in params.models():
            files = RunFiles(params.root, params.name, model, workspace=params.workspace)
            drop_cached(files.unfinished_evaluations, params.root)
    return f"report: {len(report.evaluated)} of {len(report.models)} models evaluated; open {out / 'zoo.html'}"
