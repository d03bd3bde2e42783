"""Resolve the settings of the chosen data set. Reads params.yaml; writes data/<dataset>/settings.yaml."""

import argparse

from actionzoo.jobs.settings import settings
from actionzoo.params import load_params
from actionzoo.process.stage import stage


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/settings.py").parse_args()
    with stage("settings"):
        print(settings(load_params()))


if __name__ == "__main__":
    main()
