"""The work pool of our worker. Its flow runs choose parameters of the flow, and nothing about the process.

By default, a process pool of Prefect takes the command, environment and folder of the process from each flow run.
The template in work_pool.json has no variables, and no `env` either: Prefect would merge a run's `env` into it.
"""

import json
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

TEMPLATE = Path(__file__).with_name("work_pool.json")


def make_pool(name: str) -> None:
    """Make the pool, or give the one that is there our template: an older release made it with Prefect's own."""
    template = json.loads(TEMPLATE.read_text())
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        else:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
