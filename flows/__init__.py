"""When, how many at once, on which GPU: Prefect over the DVC graph. Nothing here knows a network."""

import os
from pathlib import Path

# Read when prefect is imported, so they stand here.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
if not (Path.home() / ".prefect" / "profiles.toml").exists():  # whoever has set Prefect up keeps what they have set
    os.environ.setdefault("PREFECT_HOME", str(Path(__file__).resolve().parent.parent / ".prefect"))
