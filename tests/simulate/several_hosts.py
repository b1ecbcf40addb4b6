"""A run on two or three hosts under a virtual clock: deaths, lost hosts, lost lines and words, stalls and other sizes.

``HostsSimulation(seed).run()`` is a pure function of the seed. The coordinator, the account of who is where
(`hosts.py`) and the messages to a generation are the real ones; the rest of the shell, the workers and the memory of
each host are written down once more (`host_model.py`). Every rest is compared with the undisturbed run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from dtrain.comm.channel import Message
from dtrain.train import coordinator as c
from dtrain.train.generation import Introductions, begin_messages
from dtrain.train.hosts import Hosts
from tests.simulate.host_model import Line, Memory, coefficients, undisturbed
from tests.simulate.host_workers import HostWorker, Links, WorkersOnHosts
from tests.simulate.simulator import NUMERICS, SimWorker

TIMEOUT_SECONDS = 5.0
FAREWELL_SECONDS = 2.0


class HostsSimulation(WorkersOnHosts):
    """One run on several hosts."""

    def __init__(self, seed: int, make: Callable[[c.Policy], c.Coordinator] = c.Coordinator) -> None:
        super().__init__(seed, make)
        choose = self.random.choice
        self.hosts_count = choose([2, 3])
        self.link_losses, self.link_hazard = choose([0, 1, 2, 3]), choose([0.01, 0.05])
        self.resizes = [self.random.uniform(0, 8) for _ in range(choose([0, 0, 1, 2]))]
        self.size = self.policy.world_size
        policy = self.policy
        own = Memory(policy.shards, policy.first_step, self.check)
        self.own, self.versions, self.half_done = own, own.state, own.half_done  # what the checks look at
        self.history = undisturbed(policy.first_step, policy.steps, policy.shards)
        self.committed_steps: list[int] = []
        self.hosts = Hosts(own, "host 0", TIMEOUT_SECONDS, self.kill, lambda: self.now)  # type: ignore[arg-type]
        self.farewells: dict[int, float] = {}
        self.done: dict[int, frozenset[int]] = {}
        self.done_step = -1
        self.links: dict[int, Links] = {}
        self.is_busy = False
        self.postponed: list[Callable[[], None]] = []
        self.statistics |= {"hosts": 0, "host_losses": 0, "link_losses": 0, "resizes": 0, "given_up": 0, "late": 0}
        for when in self.resizes:
            self.at(when, lambda: self.shell(self.resize))

    # --- the shell ---------------------------------------------------------------------------------------------------

    def shell(self, action: Callable[[], None]) -> None:
        """Do what the shell does in a turn of its own; while it waits for an answer it does nothing else."""
        if self.is_busy:
            self.postponed.append(action)
        elif self.finish is None:
            action()

    def wait(self, seconds: float, until: Callable[[], bool]) -> None:
        """The shell waits: time passes for everybody else."""
        self.is_busy, end = True, self.now + seconds
        while not until() and self._heap and self._heap[0][0] <= end:
            time, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, time)
            action()
            self.wake()
        if not until():
            self.now = end
        self.is_busy = False
        postponed, self.postponed = self.postponed, []
        for action in postponed:
            self.at(self.now, lambda action=action: self.shell(action))

    def tick(self) -> None:
        self.shell(self.look)
        self.at(self.now + self.random.uniform(0.01, 0.2), self.tick)

    def look(self) -> None:
        for worker in [w for w, when in self.farewells.items() if self.now > when]:
            self.statistics["given_up"] += self.workers[worker].is_alive
            self.gone(worker)
        arrivals, waiting = self.hosts.arrivals(self.now)
        self.handle(c.Progress(arrivals, waiting, self.hosts.silent(self.now)))

    def resize(self) -> None:
        self.statistics["resizes"] += 1
        self.size = self.random.randint(1, 6)
        self.handle(c.Resized(self.size))

    def handle(self, event: c.Event) -> None:
        before = self.coordinator.committed
        super().handle(event)
        for step in range(before, self.coordinator.committed):
            if step not in self.committed_steps:  # an event may be handled while another one is
                self.committed_steps.append(step)

    def do(self, instruction: c.Instruction) -> None:
        match instruction:
            case c.Spawn(number):
                self.check(number not in self.workers, f"worker {number} is started twice")
                present = [self.workers[w] for w in self.coordinator.workers if w in self.workers]
                here = any(w.host == 0 and w.is_alive and not w.is_given_up for w in present)
                host = self.random.randrange(self.hosts_count) if here else 0
                worker = self.workers[number] = HostWorker(number, host=host)
                worker.body = self.worker(worker)
                self.at(self.now + self.delay(), lambda: self.resume(worker, None))
            case c.Kill(number, reason):
                self.statistics["kills"] += 1
                self.check_silent(self.workers[number], reason)
                self.kill(number)
            case c.Dismiss(number):
                self.dismiss(number)
            case c.Halt(generation):
                self.check(generation == self.generation, "another generation than the present one is halted")
                self.deaths_since_commit += 1
                self.hosts.halt(generation)
            case c.Grant(step):
                self.check_grant(step)
                self.check_evaluated(is_last=False)
                first, self.granted = self.granted, step
                self.hosts.grant(first, [coefficients(s) for s in range(first, step)])
            case c.Evaluate():
                self.check_rest(instruction.step)
                self.statistics["evaluations"] += 1
                self.parts = set()
                message = {"type": "evaluate", "step": instruction.step}
                for number in instruction.members:
                    self.hosts.send(number, message)
            case _:
                super().do(instruction)

    def check_silent(self, worker: HostWorker, reason: str) -> None:
        is_silent = not worker.is_alive or worker.is_stalled or worker.is_stuck or self.now - worker.woke_at < 2
        self.check(is_silent, f"killed though it is at work: {reason}")

    def check_rest(self, step: int) -> None:
        super().check_rest(step)
        self.check(self.own.parameters == self.history[step], f"other parameters after step {step} than undisturbed")

    def check_end(self, finish: c.Finish) -> None:
        if finish.status == "failed":
            self.check(self.deaths_since_commit > 2, f"gave up after {self.deaths_since_commit} losses")
            return
        super().check_end(finish)
        first = self.policy.first_step
        self.check(self.committed_steps == list(range(first, finish.step)), f"committed: {self.committed_steps}")

    def recover(self, generation: int) -> None:
        committed, self.done = self.hosts.settle()
        self.done_step = committed
        self.check(self.own.parameters == self.history[committed], f"step {committed} is settled otherwise")
        self.handle(c.Recovered(committed, self.done))

    def begin(self, begin: c.Begin) -> None:
        self.statistics["begun"] += 1
        self.check(begin.generation == self.generation + 1, "generations are not counted one by one")
        self.check(begin.step == self.committed, f"a generation begins at step {begin.step}")
        self.check_rest(begin.step)
        self.check(0 < len(begin.members) <= self.size, f"{len(begin.members)} members, {self.size} are wanted")
        self.check(self.workers[begin.members[0]].host == 0, "nobody on the coordinator's host takes part")
        self.generation, self.members = begin.generation, begin.members
        hosts, step = self.hosts, begin.step
        hosts.set_members(begin.members)
        done = self.done if self.done_step == step else {}
        hosts.begin(begin.generation, step, step, [coefficients(s) for s in range(step, self.granted)])
        self.introductions = Introductions(hosts, begin.generation)
        self.links[begin.generation] = Links()
        self.statistics["hosts"] = max(self.statistics["hosts"], 1 + len(hosts.others))
        for number, message in begin_messages(begin, hosts, done, "").items():
            hosts.send(number, message)

    # --- the workers as the shell knows them (`membership.py`) -------------------------------------------------------

    def let_in(self, worker: HostWorker) -> None:
        number = worker.number
        if number not in self.coordinator.workers or not worker.is_alive:
            worker.is_given_up = True
            return
        host = self.hosts.place(number, f"host {worker.host}")
        self.hosts.channels[number] = Line(  # type: ignore[assignment]
            lambda: not worker.is_alive, lambda item: self.post(worker, item), self.wait
        )
        self.welcome(number, (0, 0) if host == 0 else self.hosts.memory_for(number))

    def welcome(self, number: int, memory: Any) -> None:
        if memory is not False:
            self.hosts.send(number, {"type": "welcome", "memory": memory})

    def say(self, worker: HostWorker, message: Message) -> None:
        worker.sent_until = max(worker.sent_until, self.now + self.delay())

        def arrive() -> None:
            line = self.hosts.channels.get(worker.number)
            if line is not None:
                line.incoming.append(message)  # type: ignore[attr-defined]
                self.shell(lambda: self.read(worker.number))

        self.at(worker.sent_until, arrive)

    def read(self, number: int) -> None:
        line: Any = self.hosts.channels.get(number)
        while line is not None and line.incoming and self.finish is None:
            message = line.incoming.popleft()
            self.hosts.heard(number, self.now)
            self.message(number, message)

    def message(self, number: int, message: Message) -> None:
        is_present = message.get("generation") == self.coordinator.generation
        match message["type"]:
            case "joined":
                for other in self.hosts.joined(number, message):
                    self.welcome(other, self.hosts.memory_for(other))
                self.handle(c.Joined(number, NUMERICS, self.hosts.host_of[number]))
            case "progress" if is_present:
                self.hosts.reported(number, message)
            case "meeting" if is_present:
                for other, said in self.introductions.meet(number, 0).items():
                    self.hosts.send(other, said)
            case "host_killed":
                self.hosts.killed(number, message["pid"])
            case "link_lost":
                self.handle(c.LinkLost(number, message["generation"], "damaged"))
            case "halted":
                self.handle(c.WorkerHalted(number, message["generation"]))
            case "evaluated":
                self.handle(c.Evaluated(number, message["generation"], message["step"]))

    def kill(self, number: int) -> None:
        worker = self.workers[number]
        if self.hosts.host_of.get(number) == 0 and number in self.hosts.channels:
            self.at(self.now + self.delay(), lambda: self.die(worker))
            return
        is_dying = number in self.hosts.channels and self.hosts.kill(number, number)
        self.farewells[number] = self.now + (FAREWELL_SECONDS if is_dying else 0.0)

    def dismiss(self, number: int) -> None:
        self.hosts.send(number, {"type": "stop"})
        self.hosts.channels.pop(number, None)
        self.forget(number)
        self.workers[number].is_given_up = True

    def gone(self, number: int) -> None:
        """A worker's line has ended, or it is given up."""
        worker = self.workers[number]
        if worker.is_given_up:
            return
        worker.is_given_up = True
        self.deaths_since_commit += 1
        self.farewells.pop(number, None)
        is_known = self.hosts.channels.pop(number, None) is not None
        if is_known:
            self.hosts.kill(number, number)
        self.handle(c.Lost(number, "it died", self.forget(number)))

    def forget(self, number: int) -> int | None:
        """Return the host whose memory is gone with this worker, if it is."""
        host = self.hosts.host_of.get(number, 0)
        is_host_gone, queued = self.hosts.forget(number)
        gone = host if is_host_gone else None
        self.done.pop(gone, None)  # type: ignore[arg-type]
        for other in queued:
            self.welcome(other, self.hosts.memory_for(other))
        return gone

    def die(self, worker: HostWorker) -> None:
        if not worker.is_alive:
            return
        worker.is_alive, worker.waits_for, worker.body = False, None, None
        self.at(max(self.now + self.delay(), worker.sent_until), lambda: self.shell(lambda: self.gone(worker.number)))
        if worker.waits_for_a_host is not None and self.random.random() < 0.5:  # its lines break, or nobody sees it
            self.links[worker.generation].broken.update(range(self.hosts_count))
        if self.deaths > 0 and self.random.random() < 0.15:
            self.statistics["host_losses"] += 1
            self.deaths -= 1
            for other in list(self.workers.values()):
                if other.host == worker.host:
                    self.die(other)

    def stall(self, worker: SimWorker) -> None:
        """What stops one worker often stops others of its host."""
        super().stall(worker)
        for other in list(self.workers.values()):
            is_beside = other is not worker and other.host == worker.host  # type: ignore[attr-defined]
            if is_beside and other.is_alive and not other.is_stalled and self.random.random() < 0.3:
                super().stall(other)

    # --- the worker's end of its line (`agent.py`) -------------------------------------------------------------------

    def post(self, worker: HostWorker, item: Any) -> None:
        worker.received_until = max(worker.received_until, self.now + self.delay())
        self.at(worker.received_until, lambda: self.obey(worker, item))

    def obey(self, worker: HostWorker, item: Any) -> None:
        if not worker.is_alive:
            return
        if worker.is_stalled:
            self.statistics["late"] += 1
            worker.deferred.append(lambda: self.obey(worker, item))
            return
        memory = worker.memory
        if isinstance(item, list):
            setattr(memory, worker.arrays.pop(0), item)
            return
        if not item["type"].startswith("host_"):
            worker.inbox.append(item)
            return
        assert memory is not None
        match item["type"]:
            case "host_state":
                worker.arrays = ["parameters", "state"]
                memory.half_done.clear()
            case "host_begin":
                worker.told = item["generation"], item["ranks"]
                memory.begin(item["generation"], item["step"])
            case "host_grant":
                memory.grant(item["first"], item["coefficients"])
            case "host_halt":
                memory.halt(item["generation"])
            case "host_report":
                report = memory.report(item["ranks"])
                self.say(worker, {"type": "host_reported", **vars(report)})
            case "host_mend":
                self.say(worker, {"type": "host_mended", "committed": memory.mend(item["ranks"])})
            case "host_kill":
                self.die(self.workers[item["pid"]])
                self.say(worker, {"type": "host_killed", "pid": item["pid"]})

    def beat(self, worker: HostWorker) -> None:
        """What goes on in a worker besides its work."""
        if not worker.is_alive:
            return
        if not worker.is_stalled:
            if worker.waits_for_a_host is not None and worker.waits_for is not None:
                worker.waits_for_a_host.waits += 1
            if worker.host and worker.memory is not None:
                generation, ranks = worker.told
                if generation:
                    rows = worker.memory.rows(ranks)
                    message = {"type": "progress", "generation": generation, "rows": rows, "phases": rows, "steps": 0}
                    self.say(worker, message)
                self.say(worker, {"type": "alive"})
        self.at(self.now + self.random.uniform(0.1, 0.3), lambda: self.beat(worker))
