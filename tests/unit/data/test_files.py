"""Files are mapped where they can be, and a damaged or hostile one is one line that names it."""

import io
import mmap
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from dtrain.data import gather, make_source
from dtrain.data.files import read_npy, read_npz
from dtrain.errors import InputError

x = np.arange(60, dtype=np.float32).reshape(10, 6)
y = np.arange(10) % 3


def is_mapped(array: np.ndarray) -> bool:
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, (mmap.mmap, memoryview)) and (
        isinstance(base, mmap.mmap) or isinstance(base.obj, mmap.mmap)
    )


def npy_bytes(array: np.ndarray, **kwargs) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def refused(call, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_uncompressed_members_are_mapped_and_equal(tmp_path):
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x[:4], y=y[:4])
    source = make_source("npz", tmp_path, train="a.npz", eval="b.npz")
    for part, n in ((source.train, 10), (source.eval, 4)):
        np.testing.assert_array_equal(part["x"], x[:n])
        np.testing.assert_array_equal(part["y"], y[:n])
        assert all(is_mapped(array) for array in part.values())
    assert (source.features, source.classes) == (6, 3)


def test_shards_of_a_mapped_member_come_out_aligned(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:  # names of all lengths, so that some data are unaligned
        for i in range(1, 9):
            archive.writestr("x" * i + ".npy", npy_bytes(x * i))
    arrays = read_npz(tmp_path / "a.npz", "data.train")
    assert not all(array.flags.aligned for array in arrays.values())
    for i, batch in enumerate(gather(arrays, np.array([7, 2])).values(), start=1):
        assert batch.flags.aligned
        np.testing.assert_array_equal(batch, x[[7, 2]] * i)


@pytest.mark.parametrize("order", ["C", "F"])
def test_compressed_members_are_read(tmp_path, order):
    np.savez_compressed(tmp_path / "a.npz", x=np.asarray(x, order=order), y=y)
    arrays = read_npz(tmp_path / "a.npz", "data.train")
    np.testing.assert_array_equal(arrays["x"], x)
    assert not is_mapped(arrays["x"])


def test_large_compressed_members_are_read_whole(tmp_path):
    big = np.random.default_rng(0).integers(0, 4, 3_000_001, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=big)
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz", "data")["x"], big)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("variant", [np.asfortranarray(x), x.astype(">f4")], ids=["fortran", "big-endian"])
def test_other_layouts_become_plain(tmp_path, suffix, variant):
    np.save(tmp_path / "x.npy", variant)
    np.savez(tmp_path / "x.npz", x=variant)
    options = {"npy": {"x": "x.npy"}, "npz": {"train": "x.npz"}}[suffix]
    array = make_source(suffix, tmp_path, **options).train["x"]
    assert array.flags.c_contiguous
    assert array.dtype == np.float32
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, x)


def test_npy_is_mapped_and_evaluation_is_optional(tmp_path):
    for name, array in {"x": x, "y": y, "ex": x[:3], "ey": y[:3]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    source = make_source("npy", tmp_path, x="x.npy", y="y.npy", eval_x="ex.npy", eval_y="ey.npy")
    assert is_mapped(source.train["x"])
    assert is_mapped(source.eval["y"])
    assert (source.n, source.n_eval, source.classes) == (10, 3, 3)
    assert set(make_source("npy", tmp_path, x="x.npy").train) == {"x"}
    refused(lambda: make_source("npy", tmp_path, x="x.npy", y="y.npy", eval_x="ex.npy"), "data.eval: has the arrays x")


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, "float32"), ("float32", "float32"), ("float64", "float64"), ("keep", "float64")]
)
def test_floats_are_converted_and_integers_stay(tmp_path, dtype, expected):
    np.savez(tmp_path / "a.npz", x=x.astype(np.float64), pixels=x.astype(np.uint8), y=y.astype(np.int32))
    np.save(tmp_path / "x.npy", x.astype(np.float64))
    options = {} if dtype is None else {"dtype": dtype}
    source = make_source("npz", tmp_path, train="a.npz", **options)
    assert {k: str(v.dtype) for k, v in source.train.items()} == {"x": expected, "pixels": "uint8", "y": "int32"}
    assert is_mapped(source.train["x"]) is (expected == "float64")
    assert make_source("npy", tmp_path, x="x.npy", **options).train["x"].dtype == expected


def test_a_bomb_is_refused_before_it_expands(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros(1 << 25, np.uint8))
    assert path.stat().st_size < 40_000
    tracemalloc.start()
    refused(lambda: make_source("npz", tmp_path, train="bomb.npz", max_bytes=1 << 25), "expand to 33554560 bytes")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_without_an_option_the_limit_is_a_gibibyte(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=x)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, (1 << 30) + 1)  # the size that the directory declares
    (tmp_path / "a.npz").write_bytes(data)
    words = ("would expand to 1073741825 bytes, the limit is 1073741824", "raise data.max_bytes")
    refused(lambda: make_source("npz", tmp_path, train="a.npz"), *words)


def test_the_limit_is_an_option_and_counts_all_members(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1000, np.uint8), b=np.zeros(1000, np.uint8))
    refused(lambda: make_source("npz", tmp_path, train="a.npz", max_bytes=2000), "would expand to 2256 bytes", "2000")
    assert make_source("npz", tmp_path, train="a.npz", max_bytes=2256).n == 1000


def test_uncompressed_files_have_no_limit(tmp_path):
    np.savez(tmp_path / "a.npz", x=x)
    assert make_source("npz", tmp_path, train="a.npz", max_bytes=1).n == 10


def test_a_header_that_declares_more_than_there_is_takes_no_memory(tmp_path):
    huge = npy_bytes(np.zeros((10,), np.uint8)).replace(b"(10,), }            ", b"(9999999999999,), } ")
    (tmp_path / "x.npy").write_bytes(huge)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", huge)
    words = ("declares shape (9999999999999,) of uint8, 9999999999999 bytes, but holds 10",)
    refused(
        lambda: make_source("npy", tmp_path, x="x.npy"), "data.x: ", "x.npy ", *words, "write it again with np.save("
    )
    refused(lambda: make_source("npz", tmp_path, train="x.npz"), "data.train", "x.npz has a member 'x' that", *words)


def test_a_member_that_is_not_where_the_directory_says(tmp_path):
    np.savez(tmp_path / "a.npz", x=x)
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data.replace(b"PK\x03\x04", b"PK\x03\x05"))
    refused(lambda: make_source("npz", tmp_path, train="a.npz"), "a member 'x' that is not where the directory says")


def test_a_member_that_would_reach_beyond_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(10, np.uint8))
    data = bytearray((tmp_path / "a.npz").read_bytes().replace(b"(10,), }  ", b"(9999,), }"))
    directory = data.index(b"PK\x01\x02")
    (size,) = struct.unpack_from("<I", data, directory + 24)
    struct.pack_into("<2I", data, directory + 20, size + 9989, size + 9989)
    (tmp_path / "a.npz").write_bytes(data)
    refused(lambda: make_source("npz", tmp_path, train="a.npz"), "a.npz has a member 'x' that is cut short")


@pytest.mark.parametrize("compressed", [False, True])
def test_objects_are_never_unpickled(tmp_path, compressed):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a file was unpickled",))

    array = np.array([Bomb()], dtype=object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", x=array)
    refused(lambda: make_source("npy", tmp_path, x="x.npy"), "x.npy holds Python objects, which dtrain never unpickles")
    refused(lambda: make_source("npz", tmp_path, train="x.npz"), "member 'x' that holds Python objects")


@pytest.mark.parametrize("array", [np.array(["a"]), np.zeros(2, "M8[s]"), np.zeros(2, [("é", "f4")]), x.astype("c8")])
def test_what_is_no_number_is_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    refused(lambda: make_source("npy", tmp_path, x="x.npy"), "data.x: ", "x.npy ")


def test_missing_files_and_directories(tmp_path):
    refused(lambda: make_source("npz", tmp_path, train="no.npz"), "data.train: there is no file", "no.npz; correct the")
    refused(lambda: make_source("npy", tmp_path, x="."), "data.x: ", "Is a directory")
    np.savez(tmp_path / "empty.npz")
    refused(lambda: make_source("npz", tmp_path, train="empty.npz"), "empty.npz holds no arrays")


def test_other_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused(lambda: make_source("npz", tmp_path, train="a.npz"), "member 'notes.txt' that is not an array")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", npy_bytes(x))
    refused(lambda: make_source("npz", tmp_path, train="b.npz"), "compressed by method 12, which NumPy does not write")


def test_encrypted_members_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=x)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    refused(lambda: make_source("npz", tmp_path, train="a.npz"), "cannot be unpacked", "encrypted")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_npz_is_refused_at_every_length(tmp_path, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", x=x, y=y)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        refused(lambda: make_source("npz", tmp_path, train="a.npz"), "a.npz ", "np.savez(")


def test_a_truncated_npy_is_refused_at_every_length(tmp_path):
    whole = npy_bytes(x)
    for length in range(len(whole)):
        (tmp_path / "x.npy").write_bytes(whole[:length])
        refused(lambda: make_source("npy", tmp_path, x="x.npy"), "x.npy ", "np.save(")
    (tmp_path / "x.npy").write_bytes(whole + b"\0")
    refused(lambda: make_source("npy", tmp_path, x="x.npy"), "240 bytes, but holds 241")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_is_an_input_error_or_another_array_never_a_crash(tmp_path, compressed):
    path = tmp_path / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=x)
    whole, caught = path.read_bytes(), 0
    for position in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            try:
                arrays = read_npz(path, "data.train")
            except InputError:
                caught += 1
            else:
                assert all(array.nbytes < 10_000 for array in arrays.values())
    assert caught > 0.2 * 3 * len(whole)


def test_a_flipped_byte_of_compressed_data_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=x)
    data = bytearray(path.read_bytes())
    start = 30 + sum(struct.unpack("<HH", data[26:30]))
    stop, caught = data.index(b"PK\x01\x02"), 0
    for position in range(start, stop):
        data[position] ^= 0x10
        path.write_bytes(data)
        try:
            arrays = read_npz(path, "data.train")
        except InputError:
            caught += 1
        else:  # a bit of padding that the decoder does not look at
            np.testing.assert_array_equal(arrays["x"], x)
        data[position] ^= 0x10
    assert caught > 0.9 * (stop - start)


def test_a_hostile_header_is_no_recursion_error(tmp_path):
    header = b"(" * 5000 + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    refused(lambda: read_npy(tmp_path / "x.npy", "data.x"), "is not a .npy array")
