"""Re-encode at a short side. Reads <data root>/<dataset>/archive/; writes shards to <data root>/<dataset>/videos_<short
side>/ and manifest.csv, shards.csv, classes.txt to data/<dataset>/videos_<short side>/."""

import argparse

from actionzoo.jobs.prepare import resize
from actionzoo.params import load_params
from actionzoo.process.stage import stage


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python stages/resize.py 256")
    parser.add_argument("short_side", type=int, choices=(256, 320), help="pixels")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask scheduler whose workers make the parts (tcp://10.0.0.1:8786); else DASK_SCHEDULER_ADDRESS "
        "counts, and then runtime.scheduler in params.yaml",
    )
    parser.add_argument("--force", action="store_true", help="make all shards of this manifest anew, finished ones too")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with stage("resize"):
        print(resize(load_params(), args.short_side, args.scheduler, force=args.force))


if __name__ == "__main__":
    main()
