"""Share what stages build with other machines through a DVC remote. Called by the flow around each stage that it runs.

Does nothing yet.
"""

from flows.graph import Stage
from flows.request import Machine


def before(stage: Stage, machine: Machine) -> None:
    """Fetch what another machine may have built of `stage`. Called before DVC is asked to build it."""


def after(stage: Stage, machine: Machine) -> None:
    """Give away what was built. Called after `stage` was built; does not fail because of the remote."""
