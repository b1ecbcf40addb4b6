"""What goes into the coordinator and what comes out of it: events that the shell has seen, instructions for the shell.

Plain values; what they lead to is in `coordinator.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dtrain.errors import DtrainError

# --- events: what the shell has seen ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The run begins."""


@dataclass(frozen=True)
class Joined:
    """A worker is up and has said in which numerics class it computes. ``host`` is 0 for the coordinator's own."""

    worker: int
    numerics: Mapping[str, str]
    host: int = 0


@dataclass(frozen=True)
class Lost:
    """A worker's connection is gone: it died, or it was killed.

    ``gone`` is the host whose memory went with it, if one did, and all gradients there.
    """

    worker: int
    reason: str
    gone: int | None = None


@dataclass(frozen=True)
class Failed:
    """A worker reports an error of the job itself: the model, the data, a value that is not finite."""

    worker: int
    error: DtrainError


@dataclass(frozen=True)
class LinkLost:
    """A line between two hosts broke, or what came over it was damaged; both workers are there."""

    worker: int
    generation: int
    reason: str


@dataclass(frozen=True)
class WorkerHalted:
    """A member has stopped inside a step, as it was told to."""

    worker: int
    generation: int


@dataclass(frozen=True)
class Recovered:
    """The shell has read how far the halted generation had come, and has completed an update if one was decided.

    ``done`` are the shards, by host, whose gradients for step ``committed`` exist already; each is on one host.
    """

    committed: int
    done: Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Progress:
    """How far each member is: a number that grows with every step and phase, and one that grows with any work.

    ``waiting`` are the members that are alive and wait for another host, and those who start and wait for one beside
    them that makes the memory of their host. ``silent`` are the workers on other hosts from
    whom nothing at all is heard, and for how many seconds: the first member of such a host is to tell of the others.
    """

    arrivals: Mapping[int, tuple[int, int]]
    waiting: frozenset[int] = frozenset()
    silent: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """A member has finished its part of an evaluation."""

    worker: int
    generation: int
    step: int


@dataclass(frozen=True)
class StopRequested:
    """A signal or a user asks to stop at the end of the step."""


@dataclass(frozen=True)
class Resized:
    """A user wants another number of workers."""

    world_size: int


Event = (
    Started
    | Joined
    | Lost
    | LinkLost
    | Failed
    | WorkerHalted
    | Recovered
    | Progress
    | Evaluated
    | StopRequested
    | Resized
)

# --- instructions: what the shell is to do ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    """Start a process that will join as this worker."""

    worker: int


@dataclass(frozen=True)
class Kill:
    """End a worker for certain, and wait until it is gone: it may not write into the run's memory any more.

    It was silent for ``seconds`` at ``step``, in ``phase`` (`standing.Worker.phase`); ``rank`` is None outside of the
    generation.
    """

    worker: int
    reason: str
    rank: int | None = None
    step: int = 0
    phase: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Dismiss:
    """Let a worker go that is in no generation any more, or not yet there."""

    worker: int


@dataclass(frozen=True)
class Halt:
    """Make every member of the generation stop where it is."""

    generation: int


@dataclass(frozen=True)
class Recover:
    """All members of the generation are halted or dead: find out how far it came, then report Recovered."""

    generation: int


@dataclass(frozen=True)
class Begin:
    """Start a generation at ``step``. Rank r runs ``first[r]`` in that step, the shards ``runs[r]`` later."""

    generation: int
    step: int
    members: tuple[int, ...]
    first: tuple[tuple[int, ...], ...]
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Grant:
    """Allow all steps below ``step``."""

    step: int


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the parameters after ``step`` steps on the held-out data."""

    generation: int
    step: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """Keep the state after ``step`` steps. The shell copies it at once and writes it in the background."""

    step: int


@dataclass(frozen=True)
class Introspect:
    """Hand on a copy of the state after ``step`` steps to who wants to look into it."""

    step: int


@dataclass(frozen=True)
class Finish:
    """The run is over: status as in Ray's words, and the error if it failed."""

    status: str
    step: int
    error: DtrainError | None = None


Instruction = Spawn | Kill | Dismiss | Halt | Recover | Begin | Grant | Evaluate | Snapshot | Introspect | Finish
