"""Schedules the DVC graph with Prefect: when, how many at once, on which GPU. Imports nothing of the networks."""

import os
from pathlib import Path

# Prefect reads these when it is imported, so they are set here.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
if not os.path.exists(Path.home() / ".prefect" / "profiles.toml"):  # a user's own Prefect profiles stay in use
    os.environ.setdefault("PREFECT_HOME", str(Path(__file__).resolve().parent.parent / ".prefect"))
