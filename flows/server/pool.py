"""The worker's pool. A flow run may choose parameters of its flow, but nothing of its process.

By default, a process pool of Prefect takes command, environment and folder of the process from each flow run. The
template in work_pool.json has no variables, and no `env` either: Prefect would merge the `env` of a run into it.
"""

import json
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

TEMPLATE = Path(__file__).parent.with_name("work_pool.json")


def is_deployed(name: str) -> bool:
    """Whether the server has a deployment of this name, as in `zoo/train`."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            return False
    return True


def make_pool(name: str) -> None:
    """Create the pool, or replace the template of an existing one: older releases created it with Prefect's own."""
    template = json.loads(TEMPLATE.read_text())
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        else:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
