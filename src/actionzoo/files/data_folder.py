"""Where the files of a data set lie: the small ones that DVC tracks, the large ones under the data root."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """A data set (data/demo) or a part of it (data/demo/archive, data/demo/videos_256), in its two places.

    Both are one folder unless data.root is another one than data/, or the project is a queued experiment.
    """

    tracked: Path
    """In the project: inventory.json, manifest.csv, shards.csv, classes.txt."""
    stored: Path
    """Under the data root: archives and annotations, shards with their indexes and records."""

    @classmethod
    def at(cls, path: Path) -> "DataFolder":
        """Both places are `path`."""
        return cls(path, path)

    def __truediv__(self, name: str) -> "DataFolder":
        return DataFolder(self.tracked / name, self.stored / name)

    @property
    def name(self) -> str:
        return self.tracked.name

    @property
    def manifest(self) -> Path:
        return self.tracked / "manifest.csv"
