"""Files of JSON lines survive what can happen to files."""

import json
import os
import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.monitor import lines
from dtrain.monitor.lines import LineFile, encode, read_lines


def values_in(path):
    return [values for values, _ in read_lines(path)]


def test_lines_come_back(tmp_path):
    path = tmp_path / "a.jsonl"
    file = LineFile(path)
    file.append([encode({"a": 1}), encode({"b": 0.1})])
    file.append([])
    file.append([encode({"c": "é\n"})])
    file.close()
    file.close()
    assert values_in(path) == [{"a": 1}, {"b": 0.1}, {"c": "é\n"}]


@given(st.floats())
def test_a_float_keeps_every_bit(value):
    back = json.loads(encode({"x": value}))["x"]
    assert repr(float(back)) == repr(value)
    assert isinstance(back, float) or value - value != 0


def test_nan_and_inf_are_strict_json_wherever_they_are():
    line = encode({"a": [float("nan"), {"b": float("inf")}], "c": -float("inf"), "d": 1.0})
    assert json.loads(line, parse_constant=pytest.fail) == {"a": ["NaN", {"b": "Infinity"}], "c": "-Infinity", "d": 1.0}


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 16])
@given(
    st.lists(st.integers(0, 10**6), max_size=12),
    st.integers(0, 13),
    st.sampled_from([b"", b'{"n": 3', b"\0\0\0", b'garbage\n{"n"']),
)
def test_cutting_keeps_exactly_the_lines_before_those_dropped(tmp_path_factory, block, numbers, kept, torn):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    whole = [encode({"i": i, "n": n}) for i, n in enumerate(numbers)]
    path.write_bytes(b"".join(whole) + torn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block)
        file = LineFile(path)
        assert path.read_bytes() == b"".join(whole)
        last = file.cut(lambda line: line["i"] >= kept)
        file.append([encode({"i": "new"})])
        file.close()
    assert path.read_bytes() == b"".join(whole[:kept]) + encode({"i": "new"})
    expected = min(kept, len(numbers)) - 1
    assert (last["i"] if last else -1) == expected


def test_a_reader_waits_for_the_end_of_a_line_and_goes_on_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nnot json\n[1]\n{"a": 2}\n{"a":')
    found = list(read_lines(path))
    assert [values for values, _ in found] == [{"a": 1}, {"a": 2}]
    position = found[-1][1]
    with path.open("ab") as file:
        file.write(b" 3}\n")
    assert list(read_lines(path, position)) == [({"a": 3}, path.stat().st_size)]
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_a_full_disk_leaves_whole_lines_and_a_clear_error(tmp_path):
    path = tmp_path / "a.jsonl"
    file = LineFile(path)
    file.append([encode({"a": 1})])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))  # the write stops in the middle
    try:
        with pytest.raises(DtrainError, match=r"a\.jsonl: cannot be written: File too large; make room and resume$"):
            file.append([encode({"a": 2})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    file.append([encode({"a": 2})])
    file.close()
    assert values_in(path) == [{"a": 1}, {"a": 2}]


def test_a_batch_is_one_write(tmp_path, monkeypatch):
    file = LineFile(tmp_path / "a.jsonl")
    write, sizes = os.write, []
    monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
    batch = [encode({"i": i}) for i in range(1000)]
    file.append(batch)
    file.close()
    assert sizes == [sum(map(len, batch))]


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(DtrainError, match=r"none/a\.jsonl: cannot be opened for writing: No such file or directory$"):
        LineFile(tmp_path / "none" / "a.jsonl")
