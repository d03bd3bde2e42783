"""Make the zoo table. Reads metrics/<dataset>/ and the manifests; writes report/<dataset>/zoo.{md,zh.md,html,json}.

Beside them runs.js, for the page's links to MLflow and to logs: it changes with each call, and so is no output of the
stage.
"""

import argparse

from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.report.write import write_report


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/report.py").parse_args()
    with stage("report"):
        print(write_report(load_params()))


if __name__ == "__main__":
    main()
