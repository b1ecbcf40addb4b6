"""What a run asks of its coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """The settings of a run that the coordinator needs. Times are in seconds; ``*_every`` are steps, 0 means never."""

    steps: int
    shards: int
    world_size: int
    numerics: Mapping[str, str]
    first_step: int = 0
    eval_every: int = 0
    checkpoint_every: int = 0
    introspect_every: int = 0
    checkpoint_seconds: float = 0.0
    timeout_seconds: float = 5.0
    startup_timeout_seconds: float = 60.0
    max_ahead: int = 64
    ahead_seconds: float = 0.1
    can_replace: bool = True
