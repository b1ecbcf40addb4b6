"""What starts and ends the workers of a run somewhere: a thread, processes of this machine, MPI ranks, Ray actors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dtrain.comm.channel import Channel, Message
from dtrain.comm.memory import RunMemory


class Launcher(ABC):
    """Starts workers, and ends them for certain."""

    can_replace = True
    """Whether another worker can be started in the place of one that died."""

    spans_hosts = False
    """Whether workers may be on other hosts."""

    has_lost = False
    """Whether a worker was lost; the service says so."""

    @abstractmethod
    def start(self, worker: int, memory: RunMemory) -> Channel | None:
        """Start a worker and return the line to it at once, over which it says "joined" when it is up.

        None if it comes in by itself: see ``visitors``.
        """

    def attach(self, wake: Callable[[], None]) -> None:  # noqa: B027 - most launchers need nothing here
        """From now on call ``wake``, from any thread, when somebody has come in."""

    def visitors(self) -> list[tuple[int, Channel, dict[str, Any]]]:
        """Those who have come in since the last call, as (worker, line, hello); who is not expected is sent away."""
        return []

    def welcome(self, worker: int) -> Message:
        """What a worker that came in is told: the job, and how to find its part in it."""
        raise LookupError(worker)

    def address(self) -> str:
        """The address of the coordinator's host for other hosts."""
        return "127.0.0.1"

    def forget(self, worker: int) -> None:  # noqa: B027 - most launchers need nothing here
        """The worker is gone; its process number may soon be another's."""

    def pid(self, worker: int) -> int | None:
        """The number of the process of this host that a worker is, or is a thread of; None if it is not known."""
        return None

    @abstractmethod
    def kill(self, worker: int) -> None:
        """End a worker of this host for certain; its line then ends. Raises DtrainError where that is impossible."""

    def dismiss(self, worker: int) -> None:  # noqa: B027 - most launchers need nothing here
        """The worker is not wanted any more, and is told so over its line, if it has one."""

    @abstractmethod
    def close(self) -> None:
        """End everything that is left."""
