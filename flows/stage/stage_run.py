"""Build one stage with DVC in a Prefect task, which is pending until the stage's command has its devices.

begin()   while the task run is pending: wait for other flow runs, start DVC, wait for devices
finish()  while the task run is running: until DVC has ended
"""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture, PrefectTaskRunFuture
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Completed, Pending, Retrying
from prefect.types._datetime import now
from prefect.utilities.engine import emit_task_run_state_change_event

from actionzoo.errors import TEMPORARY, UserError
from actionzoo.files.addresses import without_secrets
from flows.graph import Stage
from flows.machines import share
from flows.request import Machine, Outcome, What
from flows.stage import failure, progress, slots
from flows.stage.command import Stopped
from flows.stage.dvc_lock import waits_for
from flows.stage.dvc_process import SECRET, DvcProcess

RETRY_SECONDS = (10.0, 60.0, 300.0)
"""Pauses before a stage with `meta.retries` is run again. One that uses GPUs is not."""

BUSY_SECONDS = (1.0, 5.0, 15.0, 60.0)
"""Pauses before DVC is asked again, while another process uses the stage's files."""
BUSY = " is busy, it is being blocked by:"
"""DVC's words; the next line names the process."""
POLL_SECONDS = 0.5


class Places:
    """Limits how many stages have DVC started and no device yet: each takes 100 MB of memory while it waits."""

    def __init__(self, machine: Machine) -> None:
        numbers = {"gpu": len(machine.gpus), "cpu": machine.cpu_slots}
        self._free = {kind: threading.Semaphore(number + 1) for kind, number in numbers.items()}

    @contextlib.contextmanager
    def taken(self, kind: str, stop: threading.Event, on_wait: Callable[[], object]) -> Iterator[None]:
        """Hold a place until the block ends. `on_wait` is called every 10 s while none is free. Raises Stopped."""
        free = self._free[kind]
        for attempt in itertools.count():
            if free.acquire(timeout=POLL_SECONDS):
                break
            if stop.is_set():
                raise Stopped
            if attempt % 20 == 0:
                on_wait()
        try:
            yield
        finally:
            free.release()


class StageRun:
    """What a flow run does about a stage."""

    def __init__(
        self,
        stage: Stage,
        machine: Machine,
        places: Places,
        needs: Sequence["StageRun"],
        *,
        changes: str | None,
        forced: bool,
    ) -> None:
        """`changes`: what DVC said of the stage at the start of the flow run; None if it was up to date."""
        self.stage = stage
        self.outcome: Outcome | None = None
        """None until the stage has ended, and if it was not run."""
        self._machine, self._places, self._needs, self._changes, self._forced = machine, places, needs, changes, forced
        self._kind = "gpu" if stage.gpus and machine.gpus else "cpu"
        self._error: Exception | None = None
        self._open = contextlib.ExitStack()
        """What is open from `begin` to the end."""
        self._seconds = self._waited = 0.0
        self._shown = ""

    @property
    def has_changed(self) -> bool:
        """Whether the outputs were made after this flow run had asked DVC: by it, or by another at the same time."""
        if self.outcome is None:
            return False
        return self.outcome.what in ("built", "restored") or (
            self.outcome.what == "up to date" and self._changes is not None
        )

    def begin(self) -> None:
        """Return when the stage's command has its devices, or nothing is left to do. Raises nothing."""
        self._logger = get_run_logger()
        with self._concluding():
            if self._changes is None and not self._forced and not any(need.has_changed for need in self._needs):
                self._logger.info(f"{self.stage.name} is up to date")
                self._conclude("up to date")
                return
            if self._changes is not None:
                self._logger.info(without_secrets(f"{self.stage.name} has changed: {self._changes}"))
            self._take_stage()
            if self._machine.shares:
                self._show(Pending(name="Fetching", message="what another machine may have built, from DVC's remote"))
            share.before(self.stage, self._machine, self._logger.info)
            self._start()

    def finish(self) -> Outcome:
        """Return when the stage has ended. Called by the thread that has called `begin`. Raises mistakes of ours."""
        retries = iter(RETRY_SECONDS[: 0 if self.stage.gpus else self.stage.retries])
        with self._concluding():
            while self.outcome is None:
                with progress.shown(self._machine.root, self.stage.name):
                    status = self._wait_for_dvc()
                if status and self._may_pass_by_itself() and (pause := next(retries, None)) is not None:
                    self._pause(pause)
                    self._start()
                    self._show(Retrying())
                else:
                    self._judge(status)
        if self._error:
            raise self._error
        assert self.outcome is not None
        return self.outcome

    def _take_stage(self) -> None:
        """Hold the stage itself: a second DVC that builds it would fail."""
        own = slots.Slots(self._machine.root / ".dvc" / "tmp" / "slots", "stage", {self.stage.name: self.stage.name})
        self._own = self._open.enter_context(contextlib.closing(own))
        with self._waiting():
            own.acquire(
                1,
                _who(None),
                self._machine.stop,
                lambda users: self._wait_for("another flow run", f"{', '.join(users.values())} builds it"),
            )

    def _start(self) -> None:
        """Start DVC, and return when its first command has devices, or DVC has ended, or there is nothing to do.

        DVC does not wait for files that another DVC reads or writes, not even to see that nothing has changed: here it
        is asked again until they are free. Another flow run may have built this stage, and trains from it now.
        """
        pauses = itertools.chain(BUSY_SECONDS, itertools.repeat(BUSY_SECONDS[-1]))
        while not self._start_dvc() and (user := self._user_of_files()):
            self._devices.close()  # not kept open: the wait may take days, and each attempt opens its own
            self._wait_for("files", f"{user} uses them")
            with self._waiting():
                if self._machine.stop.wait(next(pauses)):
                    raise Stopped
            if not self._forced and self._is_up_to_date():
                self._conclude("up to date")
                return

    def _user_of_files(self) -> str | None:
        """The process for which DVC has just ended, in its words; None if it has ended for another reason."""
        if not self._dvc.end():
            return None
        lines = list(self._lines)
        found = [number for number, line in enumerate(lines) if line.endswith(BUSY)]
        return " ".join(lines[found[-1] + 1].split()) if found and found[-1] + 1 < len(lines) else None

    def _is_up_to_date(self) -> bool:
        said = subprocess.run(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json", self.stage.name],
            cwd=self._machine.root,
            env={name: value for name, value in os.environ.items() if name not in SECRET},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return bool(said.returncode == 0 and said.stdout.strip() == "{}")

    def _start_dvc(self) -> bool:
        """Start DVC; True when its first command has devices, False when it has ended without a command."""
        machine, stage = self._machine, self.stage
        self._lines: deque[str] = deque(maxlen=failure.KEPT_LINES)
        self._has_worked = False
        with contextlib.ExitStack() as place:
            with self._waiting():
                place.enter_context(self._places.taken(self._kind, machine.stop, self._wait_for_place))
            self._devices = self._open.enter_context(contextlib.closing(self._slots()))
            self._show(Pending(name="Starting", message="DVC looks at what has changed, when its lock is free"))
            # the flag stands before the command; without it, DVC gives up if its lock is held for 3 seconds
            arguments = ["dvc", "--wait-for-lock", "repro", *(["-f"] if self._forced else []), "-s", stage.name]
            if stage.name in machine.beside:
                arguments = ["flows.machines.beside", stage.name]
            self._dvc = DvcProcess(
                arguments,
                root=machine.root,
                environment={**machine.cluster, **progress.environment(machine.root, stage.name)},
                on_line=self._on_line,
                stop=machine.stop,
                locks=[*self._own.descriptors, *self._devices.descriptors],
                grace_seconds=machine.grace_seconds,
                patience_seconds=machine.patience_seconds,
            )
            self._open.callback(self._dvc.end)
            if not self._dvc.asks(lambda holder: self._wait_for("DVC", waits_for(holder))):
                return False
            self._take_devices()
            return True

    def _take_devices(self) -> None:
        """Wait for the devices of a command that asks, and let it start."""
        if not self._devices.held:
            count = self._count()
            if self._kind == "gpu" and count < self.stage.gpus:
                self._logger.warning(
                    f"{self.stage.name} asks for {self.stage.gpus} GPUs, but gets all {count} there are"
                )
            with self._waiting():
                self._devices.acquire(count, _who(self.stage.name), self._machine.stop, self._wait_for_devices)
            self._logger.info(f"{self.stage.name} gets {self._kind} {', '.join(self._devices.held)}")
            self._has_worked, self._began = True, time.monotonic()
        environment = {}
        if self._kind == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices.held)
            if self._machine.devices.sets_order:
                environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        elif self._machine.hides_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._dvc.answer(environment)

    def _wait_for_dvc(self) -> int:
        """DVC's exit status, when it has ended. The devices are released as soon as the last command has ended, while
        DVC still stores what was built."""
        left = self.stage.commands
        while True:
            if self._devices.held:
                self._dvc.wait_for_command()
                left -= 1
                if left <= 0:
                    self._release()
            if not self._dvc.asks():
                self._release()
                return self._dvc.end()
            self._take_devices()

    def _release(self) -> None:
        if self._devices.held:
            self._devices.release()
            self._seconds += time.monotonic() - self._began

    def _judge(self, status: int) -> None:
        """Conclude from what DVC did."""
        if status:
            self._conclude("failed", failure.reason(self._lines, status))
            return
        if self._has_worked:
            self._conclude("built")
        elif any("is cached - skipping run" in line for line in self._lines):
            self._conclude("restored")
        else:
            self._conclude("up to date")
        if self.outcome and self.outcome.what != "up to date":
            share.after(self.stage, self._machine, self._logger.info)

    def _may_pass_by_itself(self) -> bool:
        return any(line.endswith(f", exited with {TEMPORARY}") for line in self._lines)  # DVC's words

    def _pause(self, seconds: float) -> None:
        """Before the stage is run again. The task run is in Prefect's own state for that."""
        reason = failure.reason(self._lines, 1)
        self._logger.warning(f"{self.stage.name} failed and is run again in {seconds:.0f} s: {reason}")
        self._show(AwaitingRetry(scheduled_time=now("UTC") + timedelta(seconds=seconds), message=reason))
        with self._waiting():
            if self._machine.stop.wait(seconds):
                raise Stopped

    def _conclude(self, what: What, message: str = "") -> None:
        self.outcome = Outcome(
            self.stage.name,
            what,
            seconds=self._seconds if self._seconds else None,
            waited=self._waited if self._waited else None,
            message=message,
        )

    @contextlib.contextmanager
    def _concluding(self) -> Iterator[None]:
        """Turn errors into outcomes. Once there is an outcome, end DVC and release everything."""
        try:
            yield
        except Stopped:
            if self.outcome is None:  # what was built stays built if only its sharing was stopped
                self._conclude("stopped")
        except UserError as error:
            self._conclude("failed", without_secrets(str(error)))
        except Exception as error:
            self._conclude("failed", without_secrets(f"{type(error).__name__}: {error}"))
            self._error = error
        finally:
            if self.outcome is not None:
                self._open.close()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def _slots(self) -> slots.Slots:
        """Those of which the stage gets some."""
        machine = self._machine
        names = {gpu.name: gpu.uuid for gpu in machine.devices.found}
        if self._kind == "cpu":
            names = {str(number): str(number) for number in range(machine.cpu_slots)}
        return slots.Slots(machine.slots, slots.machine_kind(self._kind), names)

    def _wait_for_place(self) -> None:
        with contextlib.closing(self._slots()) as opened:  # not kept open: hundreds of stages may wait
            self._wait_for_devices(opened.users())

    def _wait_for_devices(self, users: Mapping[str, str]) -> None:
        used = [f"{name} is used by {holder}" for name, holder in users.items() if holder]
        what = f"{self._count()} GPU{'s' if self._count() > 1 else ''}" if self._kind == "gpu" else "a CPU slot"
        self._wait_for(what, "; ".join(used) or "other stages come first")

    def _wait_for(self, what: str, why: str) -> None:
        if self._shown != (shown := f"{self.stage.name} waits for {what}: {why}"):
            self._shown = shown
            self._logger.info(shown)
            self._show(Pending(name=f"Waiting for {what}", message=why))

    def _on_line(self, line: str) -> None:
        if line:
            shown = without_secrets(line)
            self._logger.info(shown)
            self._lines.append(shown)

    def _count(self) -> int:
        """How many devices the stage gets."""
        return min(self.stage.gpus, len(self._machine.gpus)) if self._kind == "gpu" else 1

    def _show(self, state: State[Any]) -> None:
        """Replace the state of the task run, as Prefect's task engine does."""
        context = TaskRunContext.get()
        assert context is not None
        run, before = context.task_run, context.task_run.state
        state.state_details.task_run_id, state.state_details.flow_run_id = run.id, run.flow_run_id
        run.state, run.state_id, run.state_type, run.state_name = state, state.id, state.type, state.name
        emit_task_run_state_change_event(task_run=run, initial_state=before, validated_state=state)


class Beginning(PrefectTaskRunFuture[None]):
    """Put into a task's `wait_for`, after the futures of what it needs: lets Prefect's task engine call
    `StageRun.begin` while the task run is pending."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(uuid4())
        self._run = run

    def wait(self, timeout: float | None = None) -> None:
        self._run.begin()

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> None:
        return None

    @property
    def state(self) -> State[Any]:
        return Completed(data=True)  # Prefect looks for a result

    def add_done_callback(self, fn: Callable[[PrefectFuture[None]], None]) -> None:
        raise NotImplementedError("only Prefect's task engine waits for this")


def _who(stage: str | None) -> str:
    """This flow run, for others that wait for what it holds."""
    return f"{f'{stage} of ' if stage else ''}flow run {flow_run.name or 'without a name'}"
