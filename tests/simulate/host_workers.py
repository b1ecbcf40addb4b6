"""What a worker does in a simulated run on several hosts: it joins, runs steps in its host's memory, exchanges sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dtrain.comm.channel import Message
from dtrain.comm.layout import split_evenly
from tests.simulate.host_model import Memory, gradient, total
from tests.simulate.simulator import (
    BLOCKS,
    GRADIENTS,
    SUMMED,
    UPDATED,
    Body,
    Halted,
    Row,
    Simulation,
    SimWorker,
)


@dataclass
class HostWorker(SimWorker):
    host: int = 0
    memory: Memory | None = None
    is_given_up: bool = False  # nobody listens any more
    waits_for_a_host: Row | None = None
    told: tuple[int, int] = (0, 0)  # as the one that speaks for its host: generation and ranks there
    arrays: list[str] = field(default_factory=list)  # what the next arrays on its line are


class Links:
    """The lines between the hosts of one generation."""

    def __init__(self) -> None:
        self.words: dict[tuple[int, int, str, int], Any] = {}  # from, to, kind, step
        self.broken: set[int] = set()  # hosts that have seen a line break


class WorkersOnHosts(Simulation):
    """The workers' part of `several_hosts.HostsSimulation`, which has the attributes below."""

    own: Memory  # the coordinator's
    history: list[list[int]]
    links: dict[int, Links]
    link_losses: int
    link_hazard: float

    def shell(self, action: Callable[[], None]) -> None:
        raise NotImplementedError

    def let_in(self, worker: HostWorker) -> None:
        raise NotImplementedError

    def say(self, worker: HostWorker, message: Message) -> None:
        raise NotImplementedError

    def beat(self, worker: HostWorker) -> None:
        raise NotImplementedError

    def worker(self, me: SimWorker) -> Body:
        assert isinstance(me, HostWorker)
        is_stuck = self.deaths > 0 and self.random.random() < 0.05
        if is_stuck:
            self.deaths -= 1
        yield math.inf if is_stuck else self.random.choice([0.01, 1.0, 5.0]) * self.random.random()
        self.at(self.now + self.delay(), lambda: self.shell(lambda: self.let_in(me)))
        welcome = yield lambda: me.inbox.pop(0) if me.inbox else None
        if welcome["type"] == "stop":
            return (yield math.inf)
        yield self.random.choice([0.01, 1.0]) * self.random.random()
        if me.host == 0:
            me.memory = self.own
        elif welcome["memory"] is None:
            me.memory = Memory(self.policy.shards, -1, self.check)
        else:
            holder = self.workers[welcome["memory"][0]]
            if not holder.is_alive:  # there is nothing to map any more
                self.die(me)
                yield math.inf
            me.memory = holder.memory  # type: ignore[attr-defined]
        self.beat(me)
        self.say(me, {"type": "joined", "memory": (me.number, 0)})
        while True:
            message = yield lambda: me.inbox.pop(0) if me.inbox else None
            while message is not None and message["type"] == "begin":
                me.generation = generation = message["generation"]
                try:
                    message = yield from self.membership(me, message)
                except Halted:
                    message = None
                    self.say(me, {"type": "halted", "generation": generation})
                me.generation, me.waits_for_a_host = 0, None
            if message is not None and message["type"] == "stop":
                yield math.inf

    def membership(self, me: Any, begin: Message) -> Body:
        generation, rank, step = begin["generation"], begin["rank"], begin["step"]
        memory, links = me.memory, self.links[generation]
        part = begin.get("part", {"host": 0, "hosts": 1})
        shards, held = tuple(begin["first"]), begin.get("first_held")

        def has_begun() -> str | None:
            if memory.halted >= generation:
                return "halt"
            return "begun" if memory.begun >= generation else None

        if (yield has_begun) == "halt":
            raise Halted
        if part["hosts"] > 1 and rank == 0:
            self.say(me, {"type": "meeting", "generation": generation, "address": 0})
            yield from self.until(me, begin, lambda: self.is_introduced(me, generation) or None)

        def look() -> Any:
            looks = [("go", memory.granted > step), ("halt", memory.halted >= generation)]
            if self.random.random() < 0.5:  # in its first loop a worker looks at the grant alone
                looks.reverse()
            return next((word for word, is_so in looks if is_so), None) or (me.inbox.pop(0) if me.inbox else None)

        while True:
            seen = yield look
            if isinstance(seen, dict) and seen["type"] in ("begin", "stop"):
                return seen
            if seen == "halt" or memory.halted >= generation:
                raise Halted
            if seen == "go":
                yield from self.one_step(me, begin, links, step, shards, held)
                step, shards, held = step + 1, tuple(range(*begin["run"])), begin.get("held")
            elif seen["type"] == "evaluate":
                for _ in range(self.random.randint(0, 3)):
                    yield self.work()
                    self.check_evaluates(me, generation, step)
                    memory.ranks[rank].beats += 1
                    if memory.halted >= generation:
                        raise Halted
                self.say(me, {"type": "evaluated", "generation": generation, "step": seen["step"]})

    def is_introduced(self, me: HostWorker, generation: int) -> bool:
        for message in me.inbox:
            if message["type"] == "peers" and message["generation"] == generation:
                me.inbox.remove(message)
                return True
        return False

    def check_evaluates(self, me: HostWorker, generation: int, step: int) -> None:
        memory = me.memory
        assert memory is not None
        if memory.halted < generation and memory.begun == generation:
            self.check(memory.parameters == self.history[step], f"other parameters are evaluated after step {step}")

    def until(self, me: Any, begin: Message, look: Callable[[], Any]) -> Body:
        """Wait, as the first rank of a host, for other hosts: until ``look`` finds something."""
        generation, memory, links = begin["generation"], me.memory, self.links[begin["generation"]]

        def find() -> Any:
            if memory.halted >= generation:
                return "halt"
            found = look()
            return found if found is not None or begin["part"]["host"] not in links.broken else "lost"

        me.waits_for_a_host = memory.ranks[begin["rank"]]
        seen = yield find
        me.waits_for_a_host = None
        if seen == "lost":
            self.say(me, {"type": "link_lost", "generation": generation})
            yield lambda: "halt" if memory.halted >= generation else None
        if seen in ("lost", "halt") or memory.halted >= generation:
            raise Halted
        return seen

    def one_step(
        self, me: Any, begin: Message, links: Links, step: int, shards: tuple[int, ...], held: list[list[int]] | None
    ) -> Body:
        generation, rank = begin["generation"], begin["rank"]
        memory, own = me.memory, split_evenly(BLOCKS, begin["world_size"])[begin["rank"]]
        for shard in shards:
            before = list(memory.parameters)
            yield self.work()
            self.row_of(me, begin).beats += 1
            self.check(before == memory.parameters == self.history[step], f"other parameters in step {step}")
            memory.gradients[shard], memory.shard_done[shard] = gradient(step, shard, before), step + 1
            self.statistics["shards"] += 1
            if memory.halted >= generation:
                raise Halted
        yield from self.meet(me, begin, 4 * step + GRADIENTS)
        yield self.work()
        if held is None:
            for block in range(*own):
                self.row_of(me, begin)
                self.check(memory.shard_done == [step + 1] * len(memory.shard_done), f"shards {memory.shard_done}")
                memory.total[block] = total(step, memory.gradients)[block]
        elif rank == 0:
            yield from self.exchange(me, begin, links, step, held)
        yield from self.meet(me, begin, 4 * step + SUMMED)
        row = self.row_of(me, begin)
        row.blocks_done, row.update_step = own[0], step + 1
        for block in range(*own):
            self.row_of(me, begin)
            memory.half_done.add(block)
            yield self.work()
            row = self.row_of(me, begin)
            memory.half_done.discard(block)
            memory.update(block, step)
            row.blocks_done, row.beats = block + 1, row.beats + 1
        yield from self.meet(me, begin, 4 * step + UPDATED)

    def exchange(self, me: Any, begin: Message, links: Links, step: int, held: list[list[int]]) -> Body:
        """Make the whole sum out of what each host holds, and go on when all have said that they have it."""
        memory, host = me.memory, begin["part"]["host"]
        others = [h for h in range(begin["part"]["hosts"]) if h != host]
        for shard in held[host]:
            self.check(memory.shard_done[shard] == step + 1, f"shard {shard} is not on host {host} in step {step}")
        self.send_words(links, host, others, "sums", step, {s: memory.gradients[s] for s in held[host]})
        sums = yield from self.until(me, begin, lambda: self.words(links, host, others, "sums", step))
        gradients = {s: memory.gradients[s] for s in held[host]}
        for said in sums:
            self.check(gradients.keys().isdisjoint(said), f"{held=}: two hosts hold a shard")
            gradients |= said
        self.check(sorted(gradients) == list(range(self.policy.shards)), f"{held=}: a shard is nowhere")
        self.row_of(me, begin)
        memory.total = total(step, [gradients[s] for s in sorted(gradients)])
        memory.complete = step + 1
        self.send_words(links, host, others, "whole", step, True)
        yield from self.until(me, begin, lambda: self.words(links, host, others, "whole", step))

    def send_words(self, links: Links, host: int, others: list[int], kind: str, step: int, said: Any) -> None:
        for other in others:
            if self.link_losses > 0 and self.random.random() < self.link_hazard:
                self.link_losses -= 1
                self.statistics["link_losses"] += 1
                if self.random.random() < 0.5:  # both ends see it; otherwise the word is lost and nobody does
                    links.broken |= {host, other}
                continue
            place = (host, other, kind, step)
            self.at(self.now + self.delay(), lambda place=place: links.words.update({place: said}))  # type: ignore[misc]

    def words(self, links: Links, host: int, others: list[int], kind: str, step: int) -> list[Any] | None:
        found = [links.words.get((other, host, kind, step)) for other in others]
        return None if None in found else found

    def row_of(self, me: HostWorker, begin: Message) -> Row:
        """The rank's row, to write to it; only a member of the memory's generation may write to it."""
        assert me.memory is not None
        generation = begin["generation"]
        self.check(
            generation == me.memory.begun,
            f"worker {me.number} of generation {generation} writes in generation {me.memory.begun}",
        )
        return me.memory.ranks[begin["rank"]]

    def meet(self, me: Any, begin: Message, value: int) -> Body:
        self.row_of(me, begin).arrived = value
        memory, ranks, generation = me.memory, begin["world_size"], begin["generation"]

        def look() -> str | None:
            if memory.begun == generation and all(r.arrived >= value for r in memory.ranks[:ranks]):
                return "all"
            return "halt" if memory.halted >= generation else None

        if (yield look) == "halt":
            raise Halted
