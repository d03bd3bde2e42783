"""Resolve the settings of the chosen data set. Reads params.yaml; writes data/<dataset>/settings.yaml."""

import argparse

from actionzoo.jobs.settings import settings
from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.run_files import make_output_folders


def main() -> None:
    argparse.ArgumentParser(description=__doc__, epilog="example: python stages/settings.py").parse_args()
    with stage("settings"):
        params = load_params()
        make_output_folders(params.root, params.name, params.models())
        print(settings(params))


if __name__ == "__main__":
    main()
