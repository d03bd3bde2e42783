"""Re-encode at a short side. Reads data/<dataset>/archive/; writes data/<dataset>/videos_<short side>/."""

import argparse
from pathlib import Path

from actionzoo.kinetics.resize import resize
from actionzoo.params import load_params
from actionzoo.process.progress import progress
from actionzoo.process.stage import stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python stages/resize.py 256")
    parser.add_argument("short_side", type=int, choices=(256, 320), help="pixels")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask scheduler whose workers make the parts (tcp://10.0.0.1:8786); else DASK_SCHEDULER_ADDRESS "
        "counts, and then runtime.scheduler in params.yaml",
    )
    args = parser.parse_args()
    with stage("resize"):
        params = load_params()
        data = params.folder("data")
        with progress("clips") as tell:
            print(
                resize(
                    data / "archive",
                    data / f"videos_{args.short_side}",
                    short_side=args.short_side,
                    encode=params.prepare.encode,
                    jobs=params.runtime.num_jobs,
                    scratch=Path(".scratch") / "resize" / params.name,
                    clip_timeout_seconds=params.runtime.clip_timeout_seconds,
                    max_bad_share=params.dataset.max_bad_share,
                    min_frames=params.prepare.min_frames,
                    scheduler=args.scheduler or params.runtime.scheduler_address,
                    on_progress=tell,
                )
            )


if __name__ == "__main__":
    main()
