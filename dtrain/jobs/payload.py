"""What a worker process is given: the job, as a spec or as Python objects, in an anonymous file.

A spec travels as JSON. The functions and arrays of ``dtrain.fit`` travel as a pickle between processes of one user on
one host, through memory that has no name; its large arrays lie beside it, are mapped and not copied.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any

from dtrain.comm.memory import RunMemory, anonymous_file
from dtrain.jobs.build import build
from dtrain.jobs.spec import JobSpec
from dtrain.train.program import Program, dimensions

_ALIGN = 64


def spec_payload(spec: JobSpec, max_workers: int) -> int:
    """Return the descriptor of a payload that holds a job spec."""
    return _write({"kind": "spec", "spec": spec.model_dump(mode="json"), "max_workers": max_workers}, [])


def program_payload(program: Program, max_workers: int) -> int:
    """Return the descriptor of a payload that holds a program made in this process."""
    buffers: list[pickle.PickleBuffer] = []
    data = _dumps(program, buffers)
    return _write({"kind": "program", "max_workers": max_workers}, [memoryview(data), *(b.raw() for b in buffers)])


def _dumps(program: Program, buffers: list[pickle.PickleBuffer]) -> bytes:
    """Pickle a program with the user's functions in it, which keep their file names, so that errors can name a line."""
    import cloudpickle

    reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = ChainMap(  # noqa: RUF012 - pickle's way to be told
            {CodeType: lambda code: (_code, (*reduce_code(code)[:2], code.co_filename))},
            cloudpickle.Pickler.dispatch_table,
        )

    file = io.BytesIO()
    Pickler(file, protocol=5, buffer_callback=buffers.append).dump(program)
    return file.getvalue()


def _code(make: Callable[..., CodeType], arguments: tuple[Any, ...], file: str) -> CodeType:
    """Make a code object anew; cloudpickle leaves its file name out."""
    return make(*arguments).replace(co_filename=file)


def _write(header: dict[str, Any], parts: list[memoryview]) -> int:
    header |= {"sys_path": sys.path, "sizes": [p.nbytes for p in parts]}
    head = json.dumps(header).encode() + b"\n"
    offsets, end = [], len(head)
    for part in parts:
        end = -(-end // _ALIGN) * _ALIGN
        offsets.append(end)
        end += part.nbytes
    fd = anonymous_file(end)
    with mmap.mmap(fd, end) as memory:
        memory[: len(head)] = head
        for offset, part in zip(offsets, parts, strict=True):
            memory[offset : offset + part.nbytes] = part
    return fd


def read_payload(fd: int, memory_fd: int) -> tuple[Program, RunMemory]:
    """Make the program of a payload in this process and map the run's memory. Raises DtrainError for a wrong job."""
    content = mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ)
    end = content.find(b"\n") + 1
    header = json.loads(content[:end])
    sys.path[:] = header["sys_path"]
    if header["kind"] == "spec":
        program = build(JobSpec.model_validate(header["spec"]), check=False)
    else:
        parts = []
        for size in header["sizes"]:
            end = -(-end // _ALIGN) * _ALIGN
            parts.append(memoryview(content)[end : end + size])
            end += size
        program = pickle.loads(parts[0], buffers=parts[1:])
    layout = program.layout(program.initial_parameters())
    return program, RunMemory(dimensions(program, layout, header["max_workers"]), memory_fd)
