"""Make the zoo table. Reads metrics/<dataset>/ and the manifests; writes report/<dataset>/zoo.{md,zh.md,html,json}.

Also writes runs.js beside them, for the page's links to MLflow and to logs: it changes each time, so it is no output.
"""

import argparse
from pathlib import Path

from actionzoo.files.locks import locked
from actionzoo.kinetics.manifest import count_states, read_manifest
from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.report.page import write_page
from actionzoo.report.results import model_entries, read_report
from actionzoo.report.run_links import write_run_links
from actionzoo.report.tables import write_tables


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/report.py").parse_args()
    with stage("report"):
        params = load_params()
        lock = Path(".scratch") / "report" / f"{params.name}.lock"
        with locked(lock, waiting=f"another process is making the report of {params.name}; waiting for it"):
            data, out = params.folder("data"), params.folder("report")
            states = {
                form: count_states(read_manifest(data / form / "manifest.csv")) for form in ("videos_256", "videos_320")
            }
            report = read_report(
                dataset=params.name, entries=model_entries(params), root=Path(), out=out, clip_states=states
            )
            write_tables(report, out)
            write_page(report, out)
            write_run_links(params)
            print(f"report: {len(report.evaluated)} of {len(report.models)} models evaluated; open {out / 'zoo.html'}")


if __name__ == "__main__":
    main()
