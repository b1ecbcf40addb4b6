"""A run on a Ray cluster: a coordinator actor and worker actors in one placement group.

Ray places the actors and starts them again when they die; everything else is as elsewhere: the workers come to the
coordinator's door, those of one node share memory, and the nodes' sums go over sockets that know the job's token.
The coordinator is on the driver's node if that has a processor to spare; the run directory is where the coordinator is,
and is brought to the driver's node at the end if that is another one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from dtrain.comm.channel import Channel
from dtrain.comm.door import new_token
from dtrain.comm.memory import RunMemory
from dtrain.comm.threads import one_blas_thread
from dtrain.errors import DtrainError, InputError, WorkerError
from dtrain.jobs.joining import LOOPBACK, JoiningLauncher, work
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import JobSpec
from dtrain.monitor.progress import Progress
from dtrain.monitor.records import from_values
from dtrain.monitor.view import is_noted
from dtrain.train.launcher import Launcher
from dtrain.train.program import Program

NAMESPACE = "dtrain"
_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 5.0
_PLACEMENT_SECONDS = 60.0


def import_ray() -> Any:
    """Import Ray, or say how to get it."""
    try:
        import ray
    except ImportError as error:
        raise InputError(f"Ray cannot be used: {error}; install dtrain[ray]") from None
    return ray


# --- in the actors ---------------------------------------------------------------------------------------------------


class WorkerActor:
    """One worker, in a process of Ray's. When Ray starts it again after a death, it comes to the same door."""

    def __init__(self, addresses: list[Any], token: bytes, slot: int) -> None:
        def serve() -> None:
            with one_blas_thread():
                work([tuple(a) for a in addresses], token, {"slot": slot})

        threading.Thread(target=serve, name="dtrain worker", daemon=True).start()

    def is_up(self) -> bool:
        """Whether the process is there."""
        return True


class RayLauncher(JoiningLauncher):
    """Starts worker actors, in the placement group's bundles as long as there are some, then where there is room."""

    def __init__(self, spec: JobSpec, group: Any, addresses: list[str]) -> None:
        self._token = new_token()
        super().__init__(spec, self._token, addresses)
        self._group = group
        self._actors: dict[int, Any] = {}
        self._slots: dict[int, int] = {}
        self._expected: list[int] = []

    def start(self, worker: int, memory: RunMemory) -> Channel | None:
        self._expected.append(worker)
        if len(self._slots) + len(self._expected) > len(self._actors):
            self._create(next(s for s in range(len(self._actors) + 1) if s not in self._actors))
        return None

    def _create(self, slot: int) -> None:
        from ray import remote
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": 0}
        if slot < self._group.bundle_count:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group, slot)
        else:
            options["scheduling_strategy"] = "SPREAD"
        actor: Any = remote(WorkerActor)
        self._actors[slot] = actor.options(**options).remote(self.door.addresses, self._token, slot)

    def admit(self, hello: dict[str, Any]) -> int | None:
        slot = int(hello["slot"])
        for worker in [w for w, s in self._slots.items() if s == slot]:
            del self._slots[worker]  # it was started again before its death was noticed
        if slot not in self._actors or not self._expected:
            return None
        worker = self._expected.pop(0)
        self._slots[worker] = slot
        return worker

    def forget(self, worker: int) -> None:
        super().forget(worker)
        self._slots.pop(worker, None)

    def dismiss(self, worker: int) -> None:
        import ray

        if worker in self._expected:
            self._expected.remove(worker)
            spare = [s for s in self._actors if s not in self._slots.values()]
        else:
            slot = self._slots.pop(worker, None)
            spare = [] if slot is None else [slot]
        for slot in spare[-1:]:
            ray.kill(self._actors.pop(slot), no_restart=True)

    def close(self) -> None:
        import ray

        super().close()
        for actor in self._actors.values():
            with suppress(Exception):  # Ray may be gone itself
                ray.kill(actor, no_restart=True)


class _ActorBackend:
    """The backend of a run inside of the coordinator actor."""

    def __init__(self, workers: int, group: Any, addresses: list[str], nodes: int) -> None:
        self.workers, self._group, self._addresses, self._nodes = workers, group, addresses, nodes

    def launcher(self, spec: JobSpec, program: Program) -> Launcher:
        return RayLauncher(spec, self._group, self._addresses)

    def __str__(self) -> str:
        import ray

        nodes = "" if self._nodes == 1 else f" of {self._nodes} nodes"
        workers = "1 Ray worker" if self.workers == 1 else f"{self.workers} Ray workers"
        return f"on {workers}{nodes} (Ray {ray.__version__})"


class CoordinatorActor:
    """The coordinator of one run. ``run`` lasts as long as the run; the other methods are called meanwhile."""

    def __init__(self, group: Any, workers: int, is_local: bool) -> None:
        self._group, self._workers, self._is_local = group, workers, is_local
        self._service: Any = None
        self._directory: RunDirectory | None = None
        self._said: list[str] = []
        self._events_start = 0  # where in events.jsonl this process begins

    def sees(self, path: str) -> bool:
        """Whether the driver's run directory is here too: on the same node, or on storage that both share."""
        return Path(path, "job.yaml").is_file()

    def run(self, values: dict[str, Any], path: str, is_resumed: bool, content: bytes | None) -> dict[str, Any]:
        """Run a job, or go on with one, in its run directory, which is made of ``content`` if that is given."""
        from dtrain.jobs.build import build
        from dtrain.jobs.run import run_job

        ray = import_ray()

        try:
            if content is not None:
                unpack_run(content, Path(path))
            nodes = [n for n in ray.nodes() if n["Alive"]]
            addresses = [LOOPBACK] if self._is_local else [ray.util.get_node_ip_address()]
            spec = JobSpec.model_validate(values)
            self._directory = RunDirectory.open(path)
            with suppress(FileNotFoundError):
                self._events_start = self._directory.events_file.stat().st_size
            backend = _ActorBackend(self._workers, self._group, addresses, len(nodes))
            result = run_job(
                spec,
                build(spec),
                self._directory,
                backend,
                is_resumed=is_resumed,
                is_quiet=True,
                on_start=self._said.append,
                on_service=self._begun,
            )
            return {"result": result}
        except DtrainError as error:
            return {"error": str(error), "exit_code": error.exit_code}

    def _begun(self, service: Any, watcher: Any) -> None:
        from dtrain.monitor.ray_metrics import export

        self._service = service
        assert self._directory is not None
        export(watcher.metrics, self._directory.id)

    def news(self, said: int, offsets: tuple[int, int]) -> tuple[list[str], bytes, bytes]:
        """What was said since ``said`` lines, and what was added to metrics.jsonl and to this run's events since."""
        if self._directory is None:
            return self._said[said:], b"", b""
        files = self._directory.metrics_file, self._directory.events_file
        metrics, events = offsets[0], self._events_start + offsets[1]
        return self._said[said:], _added(files[0], metrics), _added(files[1], events)

    def stop(self) -> None:
        """Stop the run at the end of the step."""
        if self._service is not None:
            self._service.request_stop()

    def resize(self, workers: int) -> None:
        """Go on with another number of workers."""
        if self._service is not None:
            self._service.resize(workers)

    def packed(self, path: str) -> bytes:
        """The run directory as a tar."""
        return pack_run(Path(path))


def _added(file: Path, offset: int) -> bytes:
    """Whole lines of a file from a byte on."""
    try:
        with open(file, "rb") as stream:
            stream.seek(offset)
            data = stream.read(1 << 20)
    except OSError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def pack_run(path: Path) -> bytes:
    """Return a run directory as a tar."""
    from dtrain.jobs.parcel import pack

    lines: list[str] = []
    pack(path, 3, lines.append)
    return "\n".join(lines).encode()


def unpack_run(content: bytes, path: Path) -> None:
    """Make a run directory of what ``pack_run`` returned; every byte is checked."""
    from dtrain.jobs.parcel import receive, unpack

    with tempfile.TemporaryFile() as file:
        receive(content.decode().splitlines(), file)
        file.seek(0)
        unpack(file, path)


# --- in the driver ---------------------------------------------------------------------------------------------------


class RayRun:
    """A run on the cluster at ``address``, or on one that is started for it, seen from the driver."""

    def __init__(self, address: str | None, is_quiet: bool, say: Callable[[str], None]) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or ""
        self._is_quiet, self._say = is_quiet, say

    def run(
        self, spec: JobSpec, program: Program, path: Path, workers: int | str | None = None, is_resumed: bool = False
    ) -> dict[str, Any]:
        """Run ``spec`` in the run directory ``path`` to its end; return what result.json holds. Raises DtrainError.

        ``program`` is what `build` made of the spec here; it says how long the run is.
        """
        ray = import_ray()
        with tempfile.TemporaryDirectory(prefix="dtrain-") as folder, self._cluster(ray, spec, Path(folder)) as staged:
            is_local = not self._address
            self._steps = (program.steps, program.sampler().steps_per_epoch)
            wanted = self._check_workers(ray, spec.workers if workers is None else workers)
            group = self._place(ray, wanted)
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            actor: Any = ray.remote(CoordinatorActor)
            coordinator = actor.options(
                num_cpus=0,
                max_concurrency=4,
                name=f"{spec.name}/{path.name}",
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            ).remote(group, wanted, is_local)
            try:
                return self._follow(ray, coordinator, staged, path, is_resumed)
            except ray.exceptions.RayError as error:
                raise WorkerError(
                    f"the coordinator was lost: {str(error).splitlines()[0]}; go on from the last checkpoint with "
                    f"dtrain resume {path}"
                ) from None
            finally:
                with suppress(Exception):
                    ray.kill(coordinator)
                    ray.util.remove_placement_group(group)

    @contextmanager
    def _cluster(self, ray: Any, spec: JobSpec, folder: Path) -> Iterator[JobSpec]:
        """Connect to Ray; yield the job as the actors are to read it: its files travel if there are other nodes."""
        import logging

        from dtrain.jobs.staging import stage

        staged = spec
        options: dict[str, Any] = {"address": "local", "include_dashboard": False}
        if self._address:
            staged = stage(spec, folder).model_copy(update={"base_dir": "."})
            os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # a submitted job has brought files of its own
            options = {"address": self._address, "runtime_env": {"working_dir": str(folder)}}
        _check_reachable(self._address)
        try:
            ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            where = self._address or "a cluster of this machine"
            raise InputError(f"--address: Ray at {where} cannot be used: {str(error).splitlines()[0]}") from None
        # Ray prints there that workers died, now or when it is shut down, and nothing turns that off.
        with redirect_stdout(sys.stderr):
            try:
                yield staged
            finally:
                ray.shutdown()

    def _check_workers(self, ray: Any, workers: int | str) -> int:
        have, free = (int(r.get("CPU", 0)) for r in (ray.cluster_resources(), ray.available_resources()))
        wanted = have if workers == "auto" else int(workers)
        if wanted < 1:
            raise InputError("workers: a run on Ray needs at least 1; give --workers")
        if wanted > have or (wanted > free and workers != "auto"):
            raise InputError(f"workers: the job needs {wanted} CPUs, the cluster has {have}, {free} of them free")
        return max(1, min(wanted, free))

    def _place(self, ray: Any, workers: int) -> Any:
        from ray.util.placement_group import placement_group

        here = ray.util.get_node_ip_address()
        own = [n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == here and n["Resources"].get("CPU")]
        bundles: list[dict[str, float]] = [{"CPU": 1} for _ in range(workers)]
        if own:
            bundles[0][f"node:{here}"] = 0.001  # the run directory is then where the driver is
        group = placement_group(bundles, strategy="PACK")
        if not group.wait(_PLACEMENT_SECONDS):
            ray.util.remove_placement_group(group)
            raise WorkerError(
                f"Ray did not find room for {workers} workers in {_PLACEMENT_SECONDS:g} s; see ray status"
            )
        return group

    def _follow(self, ray: Any, coordinator: Any, spec: JobSpec, path: Path, is_resumed: bool) -> dict[str, Any]:
        is_here = ray.get(coordinator.sees.remote(str(path)))
        content = None if is_here else pack_run(path)
        values = spec.model_dump(mode="json")
        with _signals(lambda: coordinator.stop.remote()) as came:
            end = coordinator.run.remote(values, str(path), is_resumed, content)
            display = _Display(None if self._is_quiet else self._steps, self._say)
            try:
                while True:
                    done, _ = ray.wait([end], timeout=_POLL_SECONDS)
                    display.show(*ray.get(coordinator.news.remote(display.said, display.offsets)))
                    if done:
                        break
            finally:
                display.close()
            answer = ray.get(end)
        if not is_here:
            _replace(ray.get(coordinator.packed.remote(str(path))), path)
        if "error" in answer:
            error = DtrainError(answer["error"])
            error.exit_code = answer["exit_code"]
            raise error
        result: dict[str, Any] = answer["result"]
        if result["status"] == "stopped" and came:
            result["exit_code"] = 128 + came[0]
        return result


def _check_reachable(address: str) -> None:
    """Raise InputError for a host and port where nobody listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # auto, or another kind of address
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"--address: Ray at {address} cannot be used: {error.strerror or error}; expected HOST:6379 of ray start"
        ) from None


def _replace(content: bytes, path: Path) -> None:
    """Put what was packed in the place of the run directory."""
    fresh = path.with_name(f".{path.name}.fetched")
    shutil.rmtree(fresh, ignore_errors=True)
    unpack_run(content, fresh)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(fresh, path)


class _Display:
    """Shows what the coordinator tells, as a run on this machine would."""

    def __init__(self, steps: tuple[int, int] | None, say: Callable[[str], None]) -> None:
        self._steps, self._say = steps, say
        self.said, self.offsets = 0, (0, 0)
        self._progress: Progress | None = None

    def show(self, lines: list[str], metrics: bytes, events: bytes) -> None:
        """Show lines that were said, and the lines of metrics.jsonl and events.jsonl that came since."""
        for line in lines:
            self._say(line)
        self.said += len(lines)
        self.offsets = self.offsets[0] + len(metrics), self.offsets[1] + len(events)
        if self._steps is None:
            return
        for values in map(json.loads, events.splitlines()):
            if values["event"] == "started":
                self._first_step = int(values["step"])
                self._progress = Progress(*self._steps, first_step=self._first_step)
            if self._progress is not None:
                self._progress.event(values)
                if is_noted(values):
                    self._progress.note(values["text"])
        for record in (from_values(json.loads(line)) for line in metrics.splitlines()):
            if record is not None and self._progress is not None and record.step >= self._first_step:
                self._progress.update(record)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM stops the run in order, a second one ends this process."""
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, old in before.items():
            signal.signal(number, old)
