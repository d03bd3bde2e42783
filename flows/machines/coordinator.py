"""Many machines: each model goes to the next machine that has a free worker, as a flow run of its own.

    zoo/zoo, on the queue `default`        reads the graph, gives models away, waits, ends with the page
      └ zoo/machine for each model         on the queue `machines`, which the workers of all machines poll

Every machine has its own clone of the project, and all share what they build through DVC's default remote
(share.py). A machine that dies stops sending the heartbeats of its flow runs. An automation of the Prefect server
then marks them as crashed, and the flow run that gave the model away gives it to another machine, which goes on from
the last saved state in the remote (src/actionzoo/jobs/shared_states.py).

A training on several machines (`nodes`) is as many flow runs. The first one builds the stage with DVC, and tells the
others through its flow run's inputs where torchrun's processes meet. The others run the stage's command beside it.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Failed

from actionzoo.errors import UserError
from flows.graph import Stage, read_graph
from flows.machines import share
from flows.machines.given_models import GivenModels
from flows.machines.machine import ADD_REMOTE, project_of
from flows.pipeline import build
from flows.request import Outcome, Request


def build_on_machines(request: Request, *, restarts: int = 3) -> State[Any]:
    """Build what a request asks for, each model on the next free machine; returns the final state of the flow run
    inside which it is called. The flow needs the task runner THREADS.

    A model whose machine dies is given to another one, at most `restarts` times.
    """
    logger = get_run_logger()
    stop = threading.Event()
    try:
        root, stages = read_graph(request.targets)
        models = stages_of_models(stages)
        if request.folder or not models or request.dry_run:
            return build(request)
        if not share.has_remote(root):
            raise UserError(f"{root} has no default DVC remote, through which machines share; {ADD_REMOTE}")
        needed = [stage.name for stage in stages if stage.name in _needed(stages, models)]
        share.push_kept_back(root, stop, logger.info)
        known = set() if request.force else set(share.fetch(root, needed, stop, logger.info, commit=True))
        given = {model: names for model, names in models.items() if not known.issuperset(names)}
        for model in models.keys() - given.keys():
            logger.info(f"{model}: every stage was built before, and fetched")
        with get_client(sync_client=True) as client:
            models_given = GivenModels(
                client, project_of(root), force=request.force, restarts=restarts, log=logger.info
            )
            failures = models_given.build(given, request.nodes)
        known |= set(share.fetch(root, needed, stop, logger.info, commit=True))
    except UserError as error:
        return Failed(message=str(error))
    lost = _outcomes(models, failures, known)
    missing = {outcome.stage for outcome in lost}
    targets = tuple(stage.name for stage in stages if not missing & _needed(stages, {"": [stage.name]}))
    lost += [Outcome(stage.name, "not run") for stage in stages if stage.name not in {*targets, *missing}]
    if not targets:
        return Failed(message="\n".join(outcome.message for outcome in lost if outcome.message))
    return build(Request(targets, gpus=request.gpus, cpu_slots=request.cpu_slots, dask=request.dask), lost)


def stages_of_models(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Model -> its stages among `stages`, in their order. A model is what stands after the @ in the name of a stage
    that uses GPUs."""
    models = dict.fromkeys(key for stage in stages if stage.gpus and (key := stage.name.partition("@")[2]))
    return {key: [stage.name for stage in stages if stage.name.partition("@")[2] == key] for key in models}


def _needed(stages: Sequence[Stage], models: Mapping[str, Sequence[str]]) -> set[str]:
    """Names of the models' stages and of all that they need."""
    by_name = {stage.name: stage for stage in stages}
    found: set[str] = set()
    unseen = [name for names in models.values() for name in names]
    while unseen:
        name = unseen.pop()
        if name not in found:
            found.add(name)
            unseen += by_name[name].needs
    return found


def _outcomes(models: Mapping[str, Sequence[str]], failures: Mapping[str, str], known: set[str]) -> list[Outcome]:
    """Outcomes of the stages that no machine built, or that did not come back."""
    lost: list[Outcome] = []
    for model, names in models.items():
        missing = [name for name in names if name not in known]
        reason = failures.get(model, "a machine built it, but it is not in DVC's remote; start again")
        lost += [Outcome(name, "failed", message=reason) for name in missing[:1]]
        lost += [Outcome(name, "not run") for name in missing[1:]]
    return lost
