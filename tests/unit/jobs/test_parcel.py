"""A run directory on its way: what arrives is what was sent, or nothing."""

import base64
import hashlib
import io
import os
import tarfile

import numpy as np
import pytest

from dtrain.errors import DtrainError, InputError
from dtrain.jobs.parcel import BEGIN, pack, receive, unpack
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.spec import parse_spec
from dtrain.train.checkpoint import CheckpointStore

JOB = {
    "model": {"name": "softmax"},
    "data": {"name": "digits"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": 32,
    "steps": 10,
}


@pytest.fixture
def run(tmp_path):
    """A run directory with everything that one can have."""
    run = RunDirectory.create("a", path=tmp_path / "run")
    run.files.mkdir()
    (run.files / "job.yaml").write_text("x: 1\n")
    (run.files / "__pycache__").mkdir()
    (run.files / "__pycache__" / "m.pyc").write_bytes(b"x")
    run.write_job(parse_spec(JOB, base_dir=tmp_path))
    store = CheckpointStore(run.checkpoints)
    for step in (3, 6, 9):
        store.save(step, {"parameters": {"w": np.full((70, 300), step, np.float32)}}, {})
    (run.checkpoints / ".tmp-step-00000012-1").mkdir()
    (run.path / ".result.json.tmp").write_text("{")
    run.metrics_file.write_text('{"type":"step"}\n')
    run.acquire()
    run.write_endpoint("http://127.0.0.1:1", "secret")
    yield run
    run.release()


def packed(run, checkpoints=1):
    lines = []
    pack(run.path, checkpoints, lines.append)
    return lines


def received(lines):
    file = io.BytesIO()
    receive((f"{line}\n" for line in lines), file)
    file.seek(0)
    return file


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def parcel(*members):
    """A parcel of these tar members, its digest right."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"x")
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    data = file.getvalue()
    return [
        BEGIN,
        base64.b64encode(data).decode(),
        f"dtrain parcel ends {len(data)} {hashlib.sha256(data).hexdigest()}",
    ]


def test_what_arrives_is_a_run_directory(run, tmp_path):
    lines = ["Running entrypoint for job x: …", "dtrain 0.1.0 starts in /x", *packed(run, checkpoints=2), "afterwards"]
    assert max(map(len, lines)) < 20_000
    unpack(received(lines), tmp_path / "deep" / "copy")
    copy = RunDirectory.open(tmp_path / "deep" / "copy")
    parts = ("manifest.json", "parameters.safetensors")
    checkpoints = [f"checkpoints/step-0000000{step}/{part}" for step in (6, 9) for part in parts]
    assert names(copy.path) == sorted([*checkpoints, "files/job.yaml", "job.yaml", "lock", "metrics.jsonl"])
    assert copy.job_file.read_bytes() == run.job_file.read_bytes()
    assert copy.job_file.stat().st_mtime == int(run.job_file.stat().st_mtime)
    assert copy.read_job().base_dir == str(copy.files)  # its paths start in the copy
    latest = CheckpointStore(copy.checkpoints).latest()
    assert (latest.step, latest.tensors["parameters"]["w"][0, 0]) == (9, 9.0)
    assert copy.status() == "failed"  # of a run that went on elsewhere nothing more is known here
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["copy"]


@pytest.mark.parametrize("count", [0, 1, 9])
def test_as_many_checkpoints_as_asked_for_or_there_are(run, tmp_path, count):
    unpack(received(packed(run, count)), tmp_path / "copy")
    assert len(list((tmp_path / "copy" / "checkpoints").iterdir())) == min(count, 3)


@pytest.mark.parametrize("damage", ["a byte", "a line less", "no end", "no beginning", "no base64", "another size"])
def test_a_damaged_parcel_is_refused(run, tmp_path, damage):
    lines = packed(run)
    if damage == "a byte":
        lines[2] = ("B" if lines[2][100] == "A" else "A").join((lines[2][:100], lines[2][101:]))
    elif damage == "a line less":
        del lines[3]
    elif damage == "no end":
        lines.pop()
    elif damage == "no beginning":
        del lines[0]
    elif damage == "no base64":
        lines[2] = "Traceback (most recent call last):"
    else:
        lines[-1] = lines[-1].replace("ends ", "ends 1")
    with pytest.raises(DtrainError, match=r"^the parcel is (damaged|not whole).*fetch it again$"):
        received(lines)


def link(kind, name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        "../escaped",
        "model/../../escaped",
        "/tmp/escaped-from-a-parcel",
        "..\\escaped",
        ".",
        link(tarfile.SYMTYPE, "model", "/tmp"),
        link(tarfile.LNKTYPE, "model/a", "/etc/passwd"),
        link(tarfile.FIFOTYPE, "pipe", ""),
        link(tarfile.CHRTYPE, "null", ""),
        link(tarfile.DIRTYPE, "folder", ""),
    ],
    ids=lambda m: m if isinstance(m, str) else f"{m.type} {m.name}",
)
def test_names_that_lead_out_and_what_is_no_file_are_refused(tmp_path, member):
    lines = parcel(("job.yaml", b"x: 1"), member)
    with pytest.raises(DtrainError, match=r"nothing was unpacked$"):
        unpack(received(lines), tmp_path / "in" / "copy")
    assert list((tmp_path / "in").iterdir()) == []
    assert not os.path.exists("/tmp/escaped-from-a-parcel")


def test_a_file_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(DtrainError, match="cannot be written: File exists"):
        unpack(received(parcel("job.yaml", "job.yaml")), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_damaged_before_is_named(run, tmp_path):
    file = run.checkpoints / "step-00000009" / "parameters.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DtrainError, match=r"step-00000009: parameters.* it was damaged before it was fetched$"):
        unpack(received(packed(run)), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_nothing_is_overwritten(run, tmp_path):
    lines = packed(run)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    for name in ("used", "used/thesis.tex"):
        with pytest.raises(InputError, match="is there already; name a new directory"):
            unpack(received(lines), tmp_path / name)
    (tmp_path / "empty").mkdir()
    unpack(received(lines), tmp_path / "empty")
    assert (tmp_path / "empty" / "job.yaml").is_file()


def test_what_is_no_run_is_not_packed(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        pack(tmp_path, 1, lambda line: None)
