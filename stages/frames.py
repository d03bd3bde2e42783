"""Extract frames. Reads data/<dataset>/videos_<short side>/; writes data/<dataset>/frames_<short side>/."""

import argparse
from pathlib import Path

from actionzoo.kinetics.frames import extract_frames
from actionzoo.params import load_params
from actionzoo.process.progress import progress
from actionzoo.process.stage import stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python stages/frames.py 320")
    parser.add_argument("short_side", type=int, choices=(256, 320), help="pixels, of the videos to read")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask scheduler whose workers make the parts (tcp://10.0.0.1:8786); else DASK_SCHEDULER_ADDRESS "
        "counts, and then runtime.scheduler in params.yaml",
    )
    args = parser.parse_args()
    with stage("frames"):
        params = load_params()
        data = params.folder("data")
        with progress("clips") as tell:
            print(
                extract_frames(
                    data / f"videos_{args.short_side}",
                    data / f"frames_{args.short_side}",
                    qscale=params.prepare.jpeg.qscale,
                    jobs=params.runtime.num_jobs,
                    scratch=Path(".scratch") / "frames" / params.name,
                    clip_timeout_seconds=params.runtime.clip_timeout_seconds,
                    max_bad_share=params.dataset.max_bad_share,
                    scheduler=args.scheduler or params.runtime.scheduler_address,
                    on_progress=tell,
                )
            )


if __name__ == "__main__":
    main()
