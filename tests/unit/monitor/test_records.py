"""Records and the log of metrics: each step once, in order, whatever happens."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.monitor.records import EvalRecord, MetricsLog, StepRecord, from_values, read_records, to_line


def step(number, **changes):
    values = {
        "step": number,
        "epoch": number // 4,
        "loss": 0.5,
        "gradient_norm": 1.5,
        "clip_scale": 1.0,
        "learning_rate": 1e-3,
        "samples": 32,
        "seconds": 0.01,
    }
    return StepRecord(**(values | changes))


def records_in(path):
    return [record for record, _ in read_records(path)]


floats = st.floats(allow_nan=False)
by_name = st.none() | st.dictionaries(st.text(max_size=5), floats, max_size=2)
steps = st.builds(
    StepRecord,
    *[st.integers(0, 10**9), st.integers(0, 99), *[floats] * 4, st.integers(1, 10**6), floats],
    by_name,
    st.none()
    | st.dictionaries(st.integers(0, 99), st.dictionaries(st.text(max_size=5), floats, max_size=2), max_size=2),
    st.text(max_size=5),
    st.booleans(),
    weight_norms=by_name,
    update_norms=by_name,
    noise=by_name,
    summed_bytes=st.integers(0, 10**12),
    barrier_skew=st.none() | floats,
    slowest_worker=st.none() | st.integers(0, 99),
    resident_bytes=st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 10**12), max_size=2),
)
evals = st.builds(
    EvalRecord, st.integers(0, 9), st.integers(0, 9), floats, st.dictionaries(st.text(max_size=5), floats, max_size=2)
)


@given(steps | evals)
def test_a_record_comes_back_bit_for_bit(record):
    assert repr(from_values(json.loads(to_line(record)))) == repr(record)


def test_numpy_numbers_and_nan_are_taken():
    record = step(0, loss=np.float32("nan"), gradient_norm=np.float64(0.1), parameter_norms={"w": np.float32(0.5)})
    back = from_values(json.loads(to_line(record)))
    assert np.isnan(back.loss)
    assert (back.gradient_norm, back.parameter_norms) == (0.1, {"w": 0.5})


def test_lines_of_other_types_and_unknown_keys_are_passed_over():
    assert from_values({"type": "note", "text": "x"}) is None
    assert from_values(json.loads(to_line(step(3))) | {"new": 1}) == step(3)


def test_a_batch_waits_until_it_is_full_or_old(tmp_path):
    path, now = tmp_path / "m.jsonl", [0.0]
    with MetricsLog(path, batch_records=3, batch_seconds=1.0, clock=lambda: now[0]) as log:
        log.append(step(0))
        log.append(step(1))
        assert records_in(path) == []
        log.append(step(2))
        assert len(records_in(path)) == 3
        now[0] = 1.5
        log.append(step(3))
        assert len(records_in(path)) == 4
        log.append(step(4))
        assert len(records_in(path)) == 4
        log.flush(sync=True)
        assert len(records_in(path)) == 5
        log.append(step(5))
    assert records_in(path) == [step(i) for i in range(6)]


@pytest.mark.parametrize("committed", [0, 1, 3, 4, 8, 10, 99])
def test_a_resumed_run_writes_each_step_once(tmp_path, committed):
    def run(first, last, log):
        for i in range(first, last):
            log.append(step(i))
            if (i + 1) % 4 == 0:
                log.append(EvalRecord(i + 1, (i + 1) // 4, 0.25, {"accuracy": 0.5}))

    once = tmp_path / "once.jsonl"
    with MetricsLog(once) as log:
        run(0, 16, log)
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        run(0, 10, log)
    with path.open("ab") as file:
        file.write(to_line(step(10))[:-20])  # torn by a crash
    committed = min(committed, 10)
    with MetricsLog(path, committed) as log:
        if committed % 4 == 0 and committed:
            log.append(EvalRecord(committed, committed // 4, 0.25, {"accuracy": 0.5}))  # made again after the resume
        run(committed, 16, log)
    assert path.read_bytes() == once.read_bytes()


def test_an_evaluation_at_the_checkpoint_is_kept_and_later_ones_are_not(tmp_path):
    path = tmp_path / "m.jsonl"
    evaluation = EvalRecord(1, 0, 0.5)
    with MetricsLog(path) as log:
        for record in (step(0), evaluation, step(1), EvalRecord(2, 0, 0.5)):
            log.append(record)
    MetricsLog(path, 1).close()
    assert records_in(path) == [step(0), evaluation]


def test_a_step_is_never_written_twice(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        log.append(step(0))
        log.append(step(1))
    with MetricsLog(path) as log:
        with pytest.raises(ValueError, match="step 1 is in the log already; the next one is 2"):
            log.append(step(1))
        log.append(step(2))
    assert records_in(path) == [step(0), step(1), step(2)]


def test_what_cannot_be_written_is_kept_for_later(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    log.append(step(0))
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DtrainError, match="No space left on device; make room and resume"):
            log.flush()
    log.append(step(1))
    log.close()
    assert records_in(path) == [step(0), step(1)]


def test_a_disk_that_stays_full_is_not_asked_at_every_step_and_memory_stays_bounded(tmp_path, monkeypatch):
    path, now, attempts = tmp_path / "m.jsonl", [0.0], []
    log = MetricsLog(path, batch_records=10, batch_seconds=1e9, clock=lambda: now[0])

    def refuse(fd, data):
        attempts.append(len(data))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", refuse)
        patch.setattr("dtrain.monitor.records._MOST_PENDING", 50)
        for i in range(100):
            with contextlib.suppress(DtrainError):
                log.append(step(i))
    assert 4 <= len(attempts) <= 10
    log.close()
    assert records_in(path) == [step(i) for i in range(50, 100)]
