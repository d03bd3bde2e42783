"""The data stages with settings for small clips."""

from pathlib import Path

from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.download import download
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.frames import extract_frames
from actionzoo.kinetics.resize import VideoFormat, resize
from actionzoo.kinetics.transcode import Encode, EncodeSettings

ENCODE = Encode(preset="ultrafast", crf=30)


def make_archive(
    mirror: Path | str, folder: Path, splits=("train", "val", "test"), parts: str = "all", **options
) -> Path:
    """Download the mirror to `folder`/archive; returns that path. `options` are fields of Execution."""
    archive = folder / "archive"
    download(str(mirror), DataFolder.at(archive), _execution(archive, **options), splits=splits, parts=parts)
    return archive


def make_videos(
    archive: Path,
    out: Path,
    short_side: int = 64,
    *,
    encode: EncodeSettings = ENCODE,
    max_bad_share: float = 1.0,
    min_frames: int = 1,
    **options,
) -> str:
    """Resize the archive to `out`; returns the stage's closing line. `options` are fields of Execution."""
    return resize(
        DataFolder.at(archive),
        DataFolder.at(out),
        _execution(out, **options),
        video_format=VideoFormat(short_side, encode),
        max_bad_share=max_bad_share,
        min_frames=min_frames,
    )


def make_frames(videos: Path, out: Path, *, qscale: int = 2, max_bad_share: float = 0.0, **options) -> str:
    """Extract the videos' frames to `out`; returns the stage's closing line. `options` are fields of Execution."""
    return extract_frames(
        DataFolder.at(videos),
        DataFolder.at(out),
        _execution(out, **options),
        qscale=qscale,
        max_bad_share=max_bad_share,
    )


def _execution(out: Path, **options) -> Execution:
    return Execution(**{"scratch": out.parent / "scratch", "jobs": 2, "clip_timeout_seconds": 60} | options)
