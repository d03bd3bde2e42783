"""What a Prefect server offers to do with the zoo: the flows of the deployments in prefect.yaml.

    prefect deployment run zoo/train -p models='["slowfast_r50_video"]'     a part of a name that no other model has
    prefect deployment run zoo/evaluate -p models='["slowfast_*"]' -p data=kinetics400
    prefect deployment run zoo/zoo -p dry_run=true                          what would be built

flows/choices.py says what the parameters may be. Models and steps become targets in dvc.yaml, which flows/pipeline.py
builds. Each flow has more than six parameters, because they are the fields of its form.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from actionzoo.errors import UserError
from actionzoo.params import load_params
from flows import cluster, data_set
from flows.choices import (
    CpuSlots,
    Dask,
    DataSet,
    DryRun,
    Force,
    Gpus,
    Models,
    Nodes,
    OnMachines,
    Step,
    What,
    chosen_models,
    targets_of,
)
from flows.machines.coordinator import build_on_machines
from flows.pipeline import THREADS, build
from flows.request import CPU_SLOTS, Request
from flows.run_labels import name_by_models, show_begun, show_waiting
from flows.server.runs import announce

PARAMS = Path("params.yaml")  # the worker starts flows in the project's folder
REPRODUCTION = Path("reproduction")  # a DVC repository of its own


def _deployed(verb: str) -> Callable[[Callable[..., State[Any]]], Any]:
    return flow(name="zoo", flow_run_name=partial(name_by_models, verb), task_runner=THREADS)  # type: ignore[arg-type]


@_deployed("prepare")
def prepare(
    models: Models = (),
    data: DataSet = None,
    force: Force = False,
    dry_run: DryRun = False,
    cpu_slots: CpuSlots = CPU_SLOTS,
    dask: Dask = None,
) -> State[Any]:
    """Download and transcode the clips that models read."""
    return _run(["prepare"], models, data, _request(force, dry_run, None, cpu_slots, dask))


@_deployed("train")
def train(
    models: Models = (),
    data: DataSet = None,
    force: Force = False,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    cpu_slots: CpuSlots = CPU_SLOTS,
    dask: Dask = None,
    machines: OnMachines = False,
    nodes: Nodes = 1,
) -> State[Any]:
    """Train models, with the data that they need."""
    return _run(["train"], models, data, _request(force, dry_run, gpus, cpu_slots, dask, machines, nodes))


@_deployed("evaluate")
def evaluate(
    models: Models = (),
    data: DataSet = None,
    force: Force = False,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    cpu_slots: CpuSlots = CPU_SLOTS,
    dask: Dask = None,
    machines: OnMachines = False,
    nodes: Nodes = 1,
) -> State[Any]:
    """Evaluate models on all views of the validation clips, and train them before if they are not trained."""
    return _run(["evaluate"], models, data, _request(force, dry_run, gpus, cpu_slots, dask, machines, nodes))


@_deployed("benchmark")
def benchmark(
    models: Models = (),
    data: DataSet = None,
    force: Force = False,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    cpu_slots: CpuSlots = CPU_SLOTS,
    dask: Dask = None,
    machines: OnMachines = False,
) -> State[Any]:
    """Measure speed, memory and size of models."""
    return _run(["benchmark"], models, data, _request(force, dry_run, gpus, cpu_slots, dask, machines))


@_deployed("reproduce")
def reproduce(
    models: Models = (),
    data: DataSet = None,
    force: Force = False,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    cpu_slots: CpuSlots = CPU_SLOTS,
    dask: Dask = None,
) -> State[Any]:
    """Evaluate the published weights of models on the clips at hand, and compare with the published accuracies.

    For all models, the table of all is made, too: reproduction/report/.
    """

    def clips_first(request: Request, models: Sequence[str], every: bool) -> State[Any]:
        clips = build(replace(request, force=False))
        if not clips.is_completed():
            return clips
        targets = ("evaluate", "report") if every else tuple(f"evaluate@{model}" for model in models)
        reproduced = build(replace(request, targets=targets, folder=REPRODUCTION))
        if not reproduced.is_completed():
            return reproduced
        return Completed(message=f"clips: {clips.message}; published weights: {reproduced.message}")

    return _run(["prepare"], models, data, _request(force, dry_run, gpus, cpu_slots, dask), clips_first)


@_deployed("zoo")
def zoo(
    models: Models = (),
    what: What = (),
    data: DataSet = None,
    force: Force = False,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    cpu_slots: CpuSlots = CPU_SLOTS,
    dask: Dask = None,
    machines: OnMachines = False,
    nodes: Nodes = 1,
) -> State[Any]:
    """Build the zoo, or steps of it for some models: data, training, evaluation, benchmark, and the report of all."""
    return _run(what, models, data, _request(force, dry_run, gpus, cpu_slots, dask, machines, nodes))


def _anywhere(request: Request) -> State[Any]:
    return build_on_machines(request) if request.machines else build(request)


def _request(
    force: bool,
    dry_run: bool,
    gpus: Sequence[str] | None,
    cpu_slots: int,
    dask: str | None,
    machines: bool = False,
    nodes: int = 1,
) -> Request:  # the fields that several forms have
    names = None if gpus is None else tuple(gpus)
    return Request(
        force=force, dry_run=dry_run, gpus=names, cpu_slots=cpu_slots, dask=dask, machines=machines, nodes=nodes
    )


def _run(
    steps: Sequence[Step],
    words: Sequence[str],
    data: str | None,
    request: Request,
    build_for: Callable[[Request, Sequence[str], bool], State[Any]] = lambda request, models, every: _anywhere(request),
) -> State[Any]:
    """Take the steps for the models that `words` name: judge all parameters, wait until the data set may be built, and
    build; returns the final state of the flow run.

    `build_for` gets the request with its targets, the models, and whether these are all.
    """
    announce()
    try:
        cluster.check_address(request.dask)
        params = load_params(PARAMS)
        models = chosen_models(params, words)
        every = len(models) == len(params.recipes)
        request = replace(request, targets=targets_of(params, models, steps))
        with data_set.held(Path.cwd(), data, show_waiting, put_back=request.dry_run) as name:
            show_begun(name, models)
            is_new = name != params.name and not request.dry_run
            get_run_logger().info(f"data set {name}" + (", from now on in params.yaml" if is_new else ""))
            return build_for(request, models, every)
    except UserError as error:
        return Failed(message=str(error))
