"""Train one model. Reads its prepared clips; writes best.pth, latest.pth, recipe.json, curves."""

import argparse

from actionzoo.job import Job
from actionzoo.jobs.torchrun import launch_torchrun, training_runtime
from actionzoo.jobs.train import train
from actionzoo.params import load_params
from actionzoo.process.stage import stage
from actionzoo.run_files import make_output_folders


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python stages/train.py slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
    )
    parser.add_argument("model", help="a key of params.yaml's recipes")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with stage("train"):
        params = load_params()
        make_output_folders(params.root, params.name, params.models())
        launch_torchrun(training_runtime(params.runtime))
        if summary := train(Job.of(params, args.model)):
            print(summary)


if __name__ == "__main__":
    main()
