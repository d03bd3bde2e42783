"""The Kinetics-400 zoo of SlowFast and CSN, from the archives to the table."""

import os
from typing import Any

# Nothing here calls home unless its user asks for it. And OpenMP threads that wait do not spin: torch shares its cores
# with the processes that decode clips, and spinning made training steps on two busy cores ten times slower.
for _switch, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GOMP_SPINCOUNT": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "passive",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_switch, _value)

__all__ = ["__version__", "create_model", "list_models", "load_params"]


def __getattr__(name: str) -> Any:
    # on demand: torch takes seconds to import, and the data stages do without it
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("actionzoo")
        except PackageNotFoundError:  # read from a folder that is not installed
            return "unknown"
    if name == "load_params":
        from .params import load_params

        return load_params
    if name == "create_model":
        from .zoo import create_model

        return create_model
    if name in ("list_models", "rows"):  # rows is the former name
        from .zoo import list_models

        return list_models
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
