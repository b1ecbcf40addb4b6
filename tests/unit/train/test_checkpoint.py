"""What was saved comes back; what is damaged is never used; an interrupted save leaves a valid checkpoint."""

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtrain.errors import CheckpointError, InputError, NumericsError
from dtrain.train.checkpoint import CheckpointStore

META = {"position": {"step": 3, "seed": 7}, "numerics": {"numpy": "2.4.6", "blas": "openblas"}, "chain": "ab" * 32}
PARAMETERS, OPTIMIZER, MANIFEST = "parameters.safetensors", "optimizer.m.safetensors", "manifest.json"


def state(step: int) -> dict[str, dict[str, np.ndarray]]:
    return {
        "parameters": {"w": np.full((2, 3), step, np.float32), "b": np.arange(3, dtype=np.float64) * step},
        "optimizer.m": {"w": np.full((2, 3), -step, np.float32)},
    }


def assert_state(checkpoint, step: int) -> None:
    assert checkpoint.step == step
    assert {group: set(arrays) for group, arrays in checkpoint.tensors.items()} == {
        "parameters": {"w", "b"},
        "optimizer.m": {"w"},
    }
    for group, arrays in state(step).items():
        for name, array in arrays.items():
            assert checkpoint.tensors[group][name].dtype == array.dtype
            np.testing.assert_array_equal(checkpoint.tensors[group][name], array)


def filled(directory: Path, *steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, keep)
    for step in steps:
        store.save(step, state(step), META)
    return store


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def refused(call, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


class TestRoundTrip:
    def test_state_and_meta(self, tmp_path):
        path = filled(tmp_path / "run" / "checkpoints").save(418, state(418), META)
        assert path.name == "step-00000418"
        assert names(path) == [MANIFEST, OPTIMIZER, PARAMETERS]
        checkpoint = CheckpointStore(tmp_path / "run" / "checkpoints").latest()
        assert_state(checkpoint, 418)
        assert (checkpoint.path, checkpoint.meta, checkpoint.message, checkpoint.lost_steps) == (path, META, "", 0)

    @pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u8", "i4", "u1", "?", ">f4", ">i8"])
    @pytest.mark.parametrize("shape", [(), (0, 4), (5,), (2, 3, 4)])
    def test_dtypes_and_shapes(self, tmp_path, dtype, shape):
        array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(dtype)
        store = CheckpointStore(tmp_path)
        store.save(0, {"state": {"a": array}}, {})
        loaded = store.latest().tensors["state"]["a"]
        assert loaded.shape == shape
        assert loaded.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded, array)

    def test_every_bit_of_a_float(self, tmp_path):
        bits = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x00000001, 0x7F800000], np.uint32)
        store = CheckpointStore(tmp_path)
        store.save(0, {"parameters": {"w": bits.view(np.float32)}}, {})
        np.testing.assert_array_equal(store.latest().tensors["parameters"]["w"].view(np.uint32), bits)

    @pytest.mark.parametrize("view", ["transposed", "strided", "reversed"])
    def test_strided_arrays(self, tmp_path, view):
        base = np.arange(24, dtype=np.float32).reshape(4, 6)
        array = {"transposed": base.T, "strided": base[:, ::2], "reversed": base[::-1]}[view]
        store = CheckpointStore(tmp_path)
        store.save(0, {"parameters": {"w": array}}, {})
        np.testing.assert_array_equal(store.latest().tensors["parameters"]["w"], array)

    def test_loaded_tensors_may_be_written(self, tmp_path):
        filled(tmp_path, 1).latest().tensors["parameters"]["w"][...] = 5

    def test_names_of_tensors_are_data(self, tmp_path):
        odd = ["../../x", "/etc/passwd", "a/b", "", "ünï", "layers.0.w", "x\ny", "." * 300]
        store = CheckpointStore(tmp_path / "inner" / "checkpoints")
        path = store.save(0, {"parameters": {name: np.ones(1) for name in odd}}, {})
        assert set(store.latest().tensors["parameters"]) == set(odd)
        assert names(path) == [MANIFEST, PARAMETERS]
        assert names(tmp_path) == ["inner"]

    def test_meta_may_hold_numpy_scalars_and_what_is_not_finite(self, tmp_path):
        store = CheckpointStore(tmp_path)
        store.save(0, {}, {"loss": np.float32(0.5), "best": float("inf"), "shape": (1, 2), "n": np.int64(2**60)})
        assert store.latest().meta == {"loss": 0.5, "best": float("inf"), "shape": [1, 2], "n": 2**60}

    def test_the_same_state_gives_the_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            filled(tmp_path / name, 3, 5)
        for path in (tmp_path / "a").rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()

    def test_files_have_the_permissions_that_the_umask_leaves(self, tmp_path):
        path = filled(tmp_path, 1).directory / "step-00000001"
        modes = {(path / name).stat().st_mode & 0o777 for name in names(path)}
        assert modes == {path.stat().st_mode & 0o666}

    def test_a_checkpoint_written_by_hand_is_read(self, tmp_path):
        """Pins the format: checkpoints of today must be read by the dtrain of tomorrow."""
        header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
        tensors = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.5, -2)
        content = {
            "format": "dtrain-checkpoint",
            "version": 1,
            "step": 12,
            "parent": None,
            "meta": {"seed": 1},
            "files": {
                PARAMETERS: {
                    "bytes": len(tensors),
                    "sha256": hashlib.sha256(tensors).hexdigest(),
                    "tensors": {"w": {"dtype": "float32", "shape": [2]}},
                }
            },
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        content["digest"] = hashlib.sha256(text).hexdigest()
        path = tmp_path / "step-00000012"
        path.mkdir()
        (path / PARAMETERS).write_bytes(tensors)
        (path / MANIFEST).write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
        checkpoint = CheckpointStore(tmp_path).latest()
        assert checkpoint.tensors["parameters"]["w"].tolist() == [1.5, -2]
        assert (checkpoint.step, checkpoint.meta, checkpoint.digest) == (12, {"seed": 1}, content["digest"])


class TestStore:
    def test_nothing_there(self, tmp_path):
        assert CheckpointStore(tmp_path / "new").latest() is None
        assert CheckpointStore(tmp_path / "absent", read_only=True).latest() is None
        assert not (tmp_path / "absent").exists()

    def test_the_newest_are_kept(self, tmp_path):
        store = filled(tmp_path, 1, 2, 3, 4, 5, keep=2)
        assert names(tmp_path) == ["step-00000004", "step-00000005"]
        assert store.steps() == [4, 5]
        assert_state(store.latest(), 5)

    def test_steps_are_ordered_as_numbers(self, tmp_path):
        store = filled(tmp_path, 99_999_999, 100_000_000, 123_456_789_012)
        assert store.steps() == [99_999_999, 100_000_000, 123_456_789_012]
        assert store.latest().step == 123_456_789_012

    def test_other_names_are_let_alone(self, tmp_path):
        for name in ("step-1", "step-0000000007", "step-00000001.bak", "notes"):
            (tmp_path / name).mkdir()
        store = filled(tmp_path, 1, 2, keep=1)
        assert store.steps() == [2]
        assert names(tmp_path) == sorted(["step-1", "step-0000000007", "step-00000001.bak", "notes", "step-00000002"])

    def test_saving_a_step_again_replaces_it(self, tmp_path):
        store = filled(tmp_path, 4, 5)
        store.save(5, {"parameters": {"w": np.full(2, 9.0)}}, {})
        assert store.latest().tensors["parameters"]["w"].tolist() == [9, 9]
        assert names(tmp_path) == ["step-00000004", "step-00000005"]

    def test_the_one_just_saved_is_kept_though_newer_ones_are_there(self, tmp_path):
        store = filled(tmp_path, 10, 20, 30, 5, keep=2)
        assert store.steps() == [5, 30]

    def test_parents_chain_across_openings(self, tmp_path):
        store = filled(tmp_path, 1, 2)
        first, second = (store.verify(tmp_path / f"step-0000000{step}") for step in (1, 2))
        assert (first.parent, second.parent) == (None, first.digest)
        resumed = CheckpointStore(tmp_path)
        assert resumed.latest().parent == first.digest
        resumed.save(3, state(3), META)
        assert resumed.latest().parent == second.digest

    def test_opening_removes_what_was_left_but_not_to_read(self, tmp_path):
        filled(tmp_path, 1)
        (tmp_path / ".tmp-step-00000002-77").mkdir()
        (tmp_path / ".tmp-step-00000002-77" / PARAMETERS).write_bytes(b"half")
        CheckpointStore(tmp_path, read_only=True)
        assert ".tmp-step-00000002-77" in names(tmp_path)
        CheckpointStore(tmp_path)
        assert names(tmp_path) == ["step-00000001"]

    def test_one_that_had_stepped_aside_comes_back(self, tmp_path):
        filled(tmp_path, 1)
        os.rename(tmp_path / "step-00000001", tmp_path / ".replaced-step-00000001")
        assert_state(CheckpointStore(tmp_path).latest(), 1)
        shutil.copytree(tmp_path / "step-00000001", tmp_path / ".replaced-step-00000001")
        assert_state(CheckpointStore(tmp_path).latest(), 1)
        assert names(tmp_path) == ["step-00000001"]

    def test_read_only_stores_do_not_save(self, tmp_path):
        refused(lambda: CheckpointStore(tmp_path, read_only=True).save(1, {}, {}), "opened to read")

    def test_keep_must_be_positive(self, tmp_path):
        with pytest.raises(InputError, match=r"checkpoint\.keep: expected at least 1, got 0"):
            CheckpointStore(tmp_path, keep=0)

    @pytest.mark.parametrize("group", ["../x", "", ".hidden", "a/b", "x" * 300])
    def test_names_of_groups_are_checked(self, tmp_path, group):
        store = filled(tmp_path / "c", 1)
        refused(lambda: store.save(2, {group: {"w": np.ones(1)}}, {}), "cannot be a file's name")
        assert (names(tmp_path), names(tmp_path / "c")) == (["c"], ["step-00000001"])

    def test_what_safetensors_cannot_hold_is_refused(self, tmp_path):
        store = filled(tmp_path, 1)
        refused(lambda: store.save(2, {"x": {"w": np.array([None])}}, {}), "step-00000002: x cannot be saved")
        with pytest.raises(TypeError, match="checkpoint meta: object cannot be written as JSON"):
            store.save(2, {}, {"x": object()})
        assert names(tmp_path) == ["step-00000001"]


class TestExpectations:
    def test_what_agrees_is_loaded(self, tmp_path):
        store = filled(tmp_path, 1)
        assert store.latest({"position": {"seed": 7, "step": 3}, "chain": "ab" * 32}).step == 1

    def test_another_job_is_an_error_and_older_ones_are_not_tried(self, tmp_path):
        store = filled(tmp_path, 1)
        store.save(2, state(2), META | {"job": "cd" * 32})
        words = (
            "checkpoint step-00000002: its job is cdcdcdcd…, this run's is efefefef…; resume the job that wrote it",
        )
        refused(lambda: store.latest({"job": "ef" * 32}), *words)
        refused(lambda: store.latest({"other": 1}), "its other is None, this run's is 1")

    def test_another_numerics_class_names_the_field(self, tmp_path):
        store = filled(tmp_path, 1)
        with pytest.raises(NumericsError, match=r"its numerics\.blas is openblas, this run's is mkl; resume on a"):
            store.latest({"numerics": {"numpy": "2.4.6", "blas": "mkl"}})


CALLS = ("fsync", "rename", "mkdir", "chmod")


class TestFailure:
    @pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("call", CALLS)
    def test_a_failing_call_leaves_the_older_ones_and_nothing_else(self, tmp_path, monkeypatch, call, code, again):
        step = 2 if again else 3
        failed = 0
        for nth in range(1, 20):
            directory = tmp_path / str(nth)
            store = filled(directory, 1, 2)
            before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
            calls = fail_at(monkeypatch, call, nth, code)
            try:
                store.save(step, state(step), META | {"again": again})
            except CheckpointError as error:
                failed += 1
                message = str(error)
                assert message.startswith(f"checkpoint step-0000000{step}: {directory} cannot be written to: ")
                assert os.strerror(code) in message
                assert "\n" not in message
            finally:
                monkeypatch.undo()
            if calls[0] < nth:
                break
            # Before it is opened again, what stepped aside has come back. Only where the new name may not be on the
            # disk does the old one stay beside it until then.
            if call != "fsync":
                assert not [name for name in names(directory) if name.startswith(".")]
            assert store.latest().step == store.steps()[-1] >= 2
            reopened = CheckpointStore(directory)
            assert not [name for name in names(directory) if name.startswith(".")]
            after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
            unchanged = all(after.get(path) == data for path, data in before.items())
            assert unchanged or reopened.latest().meta.get("again") is again
            assert reopened.latest().message == ""
            reopened.save(step, state(step), META)
            assert_state(reopened.latest(), step)
        else:
            pytest.fail("the call never stopped failing")
        assert failed >= 1

    def test_a_full_disk_is_named_with_a_remedy(self, tmp_path, monkeypatch):
        store = filled(tmp_path, 1, 2)
        fail_at(monkeypatch, "fsync", 1, errno.ENOSPC)
        message = refused(lambda: store.save(3, state(3), META))
        monkeypatch.undo()
        assert message == (
            f"checkpoint step-00000003: {tmp_path} cannot be written to: No space left on device; it needs 72 bytes: "
            "make room or choose another run directory; step-00000002 and older ones are untouched"
        )
        assert names(tmp_path) == ["step-00000001", "step-00000002"]

    def test_a_file_that_cannot_grow(self, tmp_path):
        """The real error of the operating system, in the middle of a tensor."""
        script = """
import resource, sys
import numpy as np
from dtrain.errors import CheckpointError
from dtrain.train.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
store.save(1, {"parameters": {"w": np.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.save(2, {"parameters": {"w": np.ones(100_000)}}, {})
except CheckpointError as error:
    print(error)
"""
        result = run_python(script, tmp_path)
        assert "step-00000002: " in result
        assert "File too large; it needs 800000 bytes" in result
        assert names(tmp_path) == ["step-00000001"]
        assert CheckpointStore(tmp_path).latest().step == 1

    def test_a_directory_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        words = ("checkpoints cannot be kept in", "Not a directory; choose another run directory")
        refused(lambda: CheckpointStore(tmp_path / "file" / "c"), *words)

    def test_an_old_one_that_cannot_be_removed_does_not_fail_the_save(self, tmp_path, monkeypatch, caplog):
        store = filled(tmp_path, 1, keep=1)
        fail_at(monkeypatch, "rename", 2, errno.EACCES)
        store.save(2, state(2), META)
        monkeypatch.undo()
        assert_state(store.latest(), 2)
        assert "step-00000001 cannot be removed: Permission denied" in caplog.text

    def test_an_interrupt_leaves_nothing(self, tmp_path, monkeypatch):
        store = filled(tmp_path, 1)

        def interrupted(descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.save(2, state(2), META)
        assert names(tmp_path) == ["step-00000001"]


def fail_at(monkeypatch, call: str, nth: int, code: int) -> list[int]:
    """Make the nth call of ``os.<call>`` fail; returns the count of calls."""
    real, calls = getattr(os, call), [0]

    def failing(*args, **kwargs):
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    return calls


def run_python(script: str, *arguments: object) -> str:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


KILLED = """
import os, shutil, signal, sys
import numpy as np
import safetensors.numpy
from dtrain.train.checkpoint import CheckpointStore

base, work, step, keep = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
TOUCHING = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}

def save_until(directory, nth):
    store = CheckpointStore(directory, keep)
    count = 0
    def tick(*_):
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
    fsync = os.fsync
    os.fsync = lambda descriptor: (tick(), fsync(descriptor))[1]
    sys.addaudithook(lambda event, arguments: tick() if event in TOUCHING else None)
    tensors = {"parameters": {"w": np.full((2, 3), step, np.float32), "b": np.arange(3, dtype=np.float64) * step},
               "optimizer.m": {"w": np.full((2, 3), -step, np.float32)}}
    store.save(step, tensors, {"new": True})

for nth in range(1, 1000):
    directory = f"{work}/{nth}"
    shutil.copytree(base, directory)
    child = os.fork()
    if child == 0:
        save_until(directory, nth)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), status
    if status == 0:
        print(nth)
        break
"""


@pytest.mark.parametrize(("step", "keep"), [(3, 2), (3, 1), (2, 2), (2, 1)], ids=["new", "only", "again", "only again"])
def test_killed_at_any_moment_a_valid_checkpoint_is_left(tmp_path, step, keep):
    """A process is killed before its nth system call that touches the disk, for every n."""
    filled(tmp_path / "base", 1, 2, keep=keep)
    (tmp_path / "work").mkdir()
    moments = int(run_python(KILLED, tmp_path / "base", tmp_path / "work", step, keep))
    assert moments > 15
    outcomes = []
    for nth in range(1, moments + 1):
        directory = tmp_path / "work" / str(nth)
        store = CheckpointStore(directory, keep)
        assert not [name for name in names(directory) if not name.startswith("step-")]
        checkpoint = store.latest()
        assert checkpoint.message == ""
        is_new = "new" in checkpoint.meta
        assert_state(checkpoint, step if is_new else 2)
        outcomes.append(is_new)
        store.save(9, state(9), META)
        assert_state(store.latest(), 9)
    assert outcomes == sorted(outcomes), "once the new one is there it stays"
    assert {outcomes[0], outcomes[-1]} == {False, True}


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """The order that a power cut needs: files, their directory, the name, the parent; then old ones may go."""
    events, real_fsync, real_rename = [], os.fsync, os.rename

    def fsync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        real_fsync(descriptor)

    def rename(source, target):
        if Path(target).name == "step-00000002":
            files = {path.stat().st_ino for path in Path(source).iterdir()}
            events.append(("files", frozenset(files), Path(source).stat().st_ino))
        events.append(("rename", Path(target).name))
        real_rename(source, target)

    store = filled(tmp_path, 1, keep=1)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    store.save(2, state(2), META)
    at = next(i for i, event in enumerate(events) if event[0] == "files")
    _, files, directory = events[at]
    synced = [inode for _, inode in (e for e in events[:at] if e[0] == "sync")]
    assert len(files) == 3
    assert files <= set(synced[:-1])
    assert synced[-1] == directory
    assert events[at + 1 : at + 3] == [("rename", "step-00000002"), ("sync", tmp_path.stat().st_ino)]
    assert all(event[0] == "rename" and event[1].startswith(".tmp-step-00000001") for event in events[at + 3 :])


def test_importing_it_does_not_import_safetensors():
    assert run_python("import sys, dtrain.train.checkpoint; print('safetensors' in sys.modules)").strip() == "False"
