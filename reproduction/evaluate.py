"""Evaluate one model's published weights. Fetches them; writes reproduction/results/<dataset>/<model>/."""

import argparse

from actionzoo.jobs.reproduce import reproduce
from actionzoo.params import load_params
from actionzoo.process.stage import stage


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python reproduction/evaluate.py slowfast_r50_video_4x16x1_256e_kinetics400_rgb",
    )
    parser.add_argument("model", help="a key of params.yaml's recipes")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with stage("reproduce"):
        print(reproduce(load_params(), args.model))


if __name__ == "__main__":
    main()
