"""The artifacts with which a flow run ends."""

from collections.abc import Sequence

from prefect.artifacts import create_table_artifact

from flows.request import Machine, Outcome, Request


def publish(outcomes: Sequence[Outcome], request: Request, machine: Machine) -> None:
    """Publish the table of stages. Called inside the flow run, once all its stages have ended."""
    table = [
        {
            "stage": outcome.stage,
            "state": outcome.what,
            "seconds": "" if outcome.seconds is None else round(outcome.seconds, 1),
        }
        for outcome in outcomes
    ]
    create_table_artifact(key="stages", table=table, description="The stages of this flow, in the order of the graph")
