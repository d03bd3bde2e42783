"""Evaluate one model's published weights. Fetches them; writes released/metrics/<dataset>/<model>.json and results/."""

import argparse

from actionzoo.jobs.reproduce import reproduce
from actionzoo.params import load_params
from actionzoo.process.stage import stage


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python released/evaluate.py slowfast_r50_video_4x16x1_256e_kinetics400_rgb",
    )
    parser.add_argument("model", help="a key of params.yaml's recipes")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with stage("released"):
        print(reproduce(load_params(), args.model))


if __name__ == "__main__":
    main()
