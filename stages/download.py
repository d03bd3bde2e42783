"""Fetch the chosen data set. Reads its mirror; writes data/<dataset>/archive/inventory.json and, under the data root,
parts, annotations and replacements.

Where the source is a folder of one's own videos they stay there, and the parts are lists of them.
"""

import argparse

from actionzoo.jobs.prepare import download
from actionzoo.params import load_params
from actionzoo.process.stage import stage


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/download.py").parse_args()
    with stage("download"):
        print(download(load_params()))


if __name__ == "__main__":
    main()
