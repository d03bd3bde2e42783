"""Make the zoo table. Reads runs/<dataset>/ and the manifests; writes report/<dataset>/zoo.{md,zh.md,html,json}.

Beside them runs.js, for the page's links to MLflow and to logs: it changes with each call, and so is no output of the
stage.
"""

import argparse

from actionzoo.jobs.adopt import remove_links
from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.report.write import write_report
from actionzoo.run_files import make_output_folders


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/report.py").parse_args()
    with stage("report"):
        params = load_params()
        make_output_folders(params.root, params.name, params.models())
        print(write_report(params))
        remove_links(params.root, params.workspace, params.name, params.models())


if __name__ == "__main__":
    main()
