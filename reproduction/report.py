"""Make the table of published weights. Reads reproduction/results/<dataset>/; writes reproduction/report/<dataset>/."""

import argparse

from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.report.reproduction_page import write_reproduction_page


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python reproduction/report.py").parse_args()
    with stage("reproduce"):
        print(write_reproduction_page(load_params()))


if __name__ == "__main__":
    main()
