"""Evaluate one model on all views of val. Reads its best.pth; writes result.json, views, errors."""

import argparse

from actionzoo.job import Job
from actionzoo.jobs.evaluate import evaluate
from actionzoo.jobs.torchrun import launch_torchrun
from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.run_files import make_output_folders


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python stages/evaluate.py slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
    )
    parser.add_argument("model", help="a key of params.yaml's recipes")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with stage("evaluate"):
        params = load_params()
        make_output_folders(params.root, params.name, params.models())
        launch_torchrun(params.runtime)
        if summary := evaluate(Job.of(params, args.model)):
            print(summary)


if __name__ == "__main__":
    main()
