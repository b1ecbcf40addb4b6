"""A small form of the fingerprint matrix; the whole is `python -m tests.equivalence.matrix --hosts`."""

from __future__ import annotations

import pytest

from tests.equivalence.matrix import measure


@pytest.mark.timeout(600)
def test_every_backend_gives_one_fingerprint() -> None:
    lines: list[str] = []
    assert measure(["mlp"], [1, 3], with_hosts=False, tell=lines.append) == 0
    backends = {line[:24].strip() for line in lines[1:-1]}
    assert {"in-process", "local", "mpich", "openmpi", "ray", "mpich, 3 hosts apart"} <= backends
