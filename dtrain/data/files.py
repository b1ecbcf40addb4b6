"""Data from the user's files: .npz and .npy, memory-mapped where that is possible.

Invariant: nothing in a file is believed before it is checked. Declared sizes are compared with what is there before any
memory is taken, and pickled objects are never read. Every fault of a file is an ``InputError`` of one line that names
the file.

A mapped array costs no memory of its own, and the workers of a host share its pages. Arrays are mapped when they are
stored uncompressed, in C order and native byte order, and need no conversion; otherwise every process reads a copy.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dtrain.data.source import DataType, Source, convert
from dtrain.errors import InputError
from dtrain.options import Options, number

MAX_COMPRESSED_BYTES = 1 << 30
"""The most that the compressed members of one .npz may expand to unless the job says otherwise: 1 MB can hold 1 GiB."""

_READ_BYTES = 1 << 20
_ENCRYPTED = 1  # bit of a zip member's flags
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, length of the name, length of the extra field
_NPZ_REMEDY = "write it again with np.savez(path, x=…, y=…)"
_NPY_REMEDY = "write it again with np.save(path, array)"


@dataclass(frozen=True)
class FileOptions(Options):
    """Options of both kinds of files.

    ``dtype`` is what floats are converted to: float32 unless told, because a float64 sample would make a float32 model
    compute in float64; ``keep`` leaves them. Integers stay what they are. ``max_bytes`` is the most that the compressed
    members of one file may expand to.
    """

    section = "data"
    dtype: DataType = "float32"
    max_bytes: int = number(MAX_COMPRESSED_BYTES, at_least=1)


def load_npz(options: FileOptions, train: Path, eval: Path | None = None) -> Source:
    """The arrays of one .npz to train on and of another for evaluation, by the names they have in the file."""
    held_out = {} if eval is None else read_npz(eval, "data.eval", options)
    return Source(read_npz(train, "data.train", options), held_out)


def load_npy(
    options: FileOptions, x: Path, y: Path | None = None, eval_x: Path | None = None, eval_y: Path | None = None
) -> Source:
    """One .npy for ``x`` and, if given, one for ``y``; likewise for evaluation."""
    parts = []
    for prefix, paths in (("", {"x": x, "y": y}), ("eval_", {"x": eval_x, "y": eval_y})):
        arrays = {}
        for name, path in paths.items():
            if path is not None:
                arrays[name] = convert(read_npy(path, f"data.{prefix}{name}"), options.dtype)
        parts.append(arrays)
    return Source(parts[0], parts[1])


def read_npy(path: Path, key: str) -> NDArray[Any]:
    """Map the array of a .npy file; ``key`` is the key of the spec, for the error."""
    with _file(path, key, _NPY_REMEDY) as file:
        return _map(file, 0, file.seek(0, 2))


def read_npz(path: Path, key: str, options: FileOptions | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz by name: stored members mapped where they lie in the file, compressed ones read.

    Without ``options`` floats are kept as they are.
    """
    limit = options.max_bytes if options else MAX_COMPRESSED_BYTES
    arrays: dict[str, NDArray[Any]] = {}
    with _file(path, key, _NPZ_REMEDY) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        declared = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
        if declared > limit:
            raise InputError(
                f"{key}: {path} would expand to {declared} bytes, the limit is {limit}; save it with np.savez, "
                "uncompressed, so that it is memory-mapped, or raise data.max_bytes"
            )
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                raise _FaultError(f"has a member {member.filename!r} that is not an array with a name of its own")
            try:
                array = _member(file, archive, member)
            except _FaultError as fault:
                raise _FaultError(f"has a member {name!r} that {fault}") from None
            arrays[name] = convert(array, options.dtype if options else "keep")
        if not arrays:
            raise _FaultError("holds no arrays")
    return arrays


class _FaultError(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


@contextmanager
def _file(path: Path, key: str, remedy: str) -> Iterator[IO[bytes]]:
    """Open ``path``; whatever its content makes go wrong becomes one line that names it and ends in ``remedy``."""
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{key}: there is no file {path}; correct the path") from None
    except OSError as error:
        reason = error.strerror or _line(error)
        raise InputError(f"{key}: {path} cannot be read ({reason}); correct the path or its permissions") from None
    except _FaultError as fault:
        raise InputError(f"{key}: {path} {fault}; {remedy}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError) as error:
        raise InputError(f"{key}: {path} is damaged or cut short ({_line(error)}); {remedy}") from None
    except (NotImplementedError, RuntimeError) as error:  # from zipfile: compression that it does not know, encryption
        raise InputError(f"{key}: {path} cannot be unpacked ({_line(error)}); {remedy}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _member(file: IO[bytes], archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED:
        # The central directory does not say where the data begin: the local header has lengths of its own.
        file.seek(member.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise _FaultError("is not where the directory says")
        start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        return _map(file, start, start + member.file_size)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _FaultError(f"is compressed by method {member.compress_type}, which NumPy does not write")
    # Reading to the end, as the loop below does, has zipfile compare the checksum.
    with archive.open(member) as stream:
        shape, is_fortran, dtype = _header(stream, member.file_size)
        array = np.empty(shape, dtype, order="F" if is_fortran else "C")
        # "K" is the order in memory, which for a new array is the order in the file.
        rest = array.ravel(order="K").view(np.uint8)
        while rest.size:
            chunk = np.frombuffer(stream.read(min(_READ_BYTES, rest.size)), np.uint8)
            if not chunk.size:
                raise _FaultError("is cut short")
            rest[: chunk.size] = chunk
            rest = rest[chunk.size :]
    return array


def _map(file: IO[bytes], start: int, stop: int) -> NDArray[Any]:
    """Map the array whose .npy bytes lie at ``start`` … ``stop`` in ``file``. Its items need not be aligned."""
    if stop > file.seek(0, 2):
        raise _FaultError("is cut short")
    file.seek(start)
    shape, is_fortran, dtype = _header(file, stop - start)
    if 0 in shape:
        return np.empty(shape, dtype)
    mapped = np.memmap(file, dtype, "r", offset=file.tell(), shape=shape, order="F" if is_fortran else "C")
    return np.asarray(mapped)


def _header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the .npy header at the start of ``size`` bytes: (shape, is Fortran order, dtype).

    Raises for what is not plain numbers, and unless the declared array fills exactly the bytes that are there.
    """
    before = stream.tell()
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:  # 3.0 is for field names, of records that are refused in any case
            raise _FaultError(f"is of .npy version {version[0]}.{version[1]}, which holds no plain numbers")
    except (_FaultError, OSError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # NumPy hands the text to Python's own parsers, which raise what they like
        raise _FaultError(f"is not a .npy array ({_line(error)})") from None
    if dtype.hasobject:
        raise _FaultError("holds Python objects, which dtrain never unpickles")
    if dtype.kind not in "biuf":
        raise _FaultError(f"has dtype {dtype}, expected integers, booleans or floats")
    present = size - (stream.tell() - before)
    expected = math.prod(shape) * dtype.itemsize
    if expected != present or min(shape, default=0) < 0:
        raise _FaultError(f"declares shape {shape} of {dtype.name}, {expected} bytes, but holds {max(present, 0)}")
    return shape, is_fortran, dtype
