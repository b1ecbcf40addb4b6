"""The command line as its user meets it: what it prints, its exit codes, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dtrain.jobs.build import build
from dtrain.jobs.spec import load_spec
from tests.support import (
    DIGITS,
    ROOT,
    command,
    dtrain,
    events_of,
    has_stepped,
    nothing_left_behind,
    result_of,
    steps_of,
    wait_until,
)

MODEL = """
import numpy as np

def init(rng):
    return {"w": rng.standard_normal((64, 10)) * 0.01, "b": np.zeros(10)}

def loss(params, batch):
    scores = batch["x"] @ params["w"] + params["b"]
    scores = scores - np.max(scores, axis=1, keepdims=True)
    logs = scores - np.log(np.sum(np.exp(scores), axis=1, keepdims=True))
    return -logs[np.arange(len(batch["y"])), batch["y"]]

def metrics(params, batch):
    return {"accuracy": np.argmax(batch["x"] @ params["w"] + params["b"], axis=1) == batch["y"]}
"""


@pytest.fixture
def job(tmp_path):
    """Write a job file with these keys changed, and return its path."""

    def write(**changes):
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**DIGITS, "epochs": 2, **changes}))
        return path

    return write


def test_the_readme_job_reaches_97_percent(tmp_path):
    with nothing_left_behind(tmp_path):
        done = dtrain("run", ROOT / "examples" / "digits.yaml", "--workers", 2, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "run")
    assert result["status"] == "succeeded"
    assert result["eval"]["accuracy"] >= 0.97
    for part in ("succeeded after 480 steps", "test accuracy", result["fingerprint"], str(tmp_path / "run")):
        assert part in done.stdout
    for part in ("480 steps of 128 samples in 8 shards on 2 workers", "step 480/480", "grad norm", "samples/s"):
        assert part in done.stderr


def test_json_on_standard_output_and_status(job, tmp_path):
    done = dtrain("run", job(), "--workers", 1, "--run-dir", tmp_path / "run", "--json", "-q")
    result = json.loads(done.stdout)
    assert result["status"] == "succeeded"
    assert result["fingerprint"] == result_of(tmp_path / "run")["fingerprint"]
    status = dtrain("status", tmp_path / "run", "--json")
    assert json.loads(status.stdout)["status"] == "succeeded"


def test_overrides_change_the_job_and_the_run_directory_is_ours_to_name(job, tmp_path):
    done = dtrain("run", job(), "--workers", 3, "--set", "optimizer.lr=0.002", "--run-dir", tmp_path / "a", "-q")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "a" / "job.yaml").read_text())["optimizer"]["lr"] == 0.002
    again = dtrain("run", job(), "--run-dir", tmp_path / "a")
    assert again.returncode == 2
    assert "holds a run already; go on with dtrain resume" in again.stderr


def test_a_users_model_file_is_trained_with_one_fingerprint(job, tmp_path):
    (tmp_path / "my_model.py").write_text(MODEL)
    path = job(model={"entry": "my_model.py"}, optimizer={"name": "momentum", "lr": 0.3}, epochs=10)
    results = []
    for workers in (0, 1, 3):
        done = dtrain("run", path, "--workers", workers, "--json", "-q", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert len({r["fingerprint"] for r in results}) == 1
    assert results[0]["eval"]["accuracy"] > 0.9


def test_resume_uses_the_model_as_it_was(job, tmp_path):
    """The run keeps a copy of the model; what is edited later belongs to the next run."""
    model = tmp_path / "my_model.py"
    model.write_text(MODEL)
    path = job(model={"entry": "my_model.py"}, optimizer={"name": "sgd", "lr": 0.1}, epochs=150)
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("run", path, "--workers", 1, "--run-dir", run, "-q"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_until(lambda: has_stepped(run))
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    model.write_text("raise SystemExit('edited')")
    done = dtrain("resume", run, "--workers", 2, "-q")
    assert done.returncode == 0, done.stderr
    assert result_of(run)["step"] == 150 * 12


def mistakes():
    return {
        "an unknown key": (["--set", "optimizr.lr=1"], "optimizr: unknown key; did you mean optimizer?"),
        "a wrong type": (["--set", "batch=many"], 'batch=many: expected an integer, got "many"'),
        "an unknown option": (["--set", "model.hiden=[3]"], "hiden"),
        "an unknown source": (["--set", "data.name=digit"], "no data source 'digit'; did you mean 'digits'?"),
        "an unknown rule": (["--set", "optimizer.name=adm"], "no optimizer 'adm'; did you mean 'adam'?"),
        "a missing model": (["--set", "model={entry: gone.py}"], "no such file"),
        "a wrong number of workers": (["--workers", "two"], "--workers: expected auto or a number of at least 0"),
        "a wrong loss": (["--set", "loss=hing"], "did you mean 'hinge'?"),
        "a port that is too large": (["--set", "monitor.metrics_port=70000"], "metrics_port"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_mistake_is_one_line_and_makes_nothing(job, tmp_path, name):
    arguments, message = mistakes()[name]
    done = dtrain("run", job(), *arguments, "--run-dir", tmp_path / "run", "-q")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_missing_files(tmp_path):
    for arguments in (["run", tmp_path / "no.yaml"], ["resume", tmp_path], ["status", tmp_path / "gone"]):
        done = dtrain(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_mistake_in_the_model_names_the_users_line(job, tmp_path):
    (tmp_path / "my_model.py").write_text(MODEL.replace("(64, 10)", "(63, 10)"))
    done = dtrain("run", job(model={"entry": "my_model.py"}), "--workers", 2, "--run-dir", tmp_path / "run", "-q")
    assert done.returncode == 2
    assert "matmul: expected" in done.stderr
    assert "my_model.py:8" in done.stderr
    assert "Traceback" not in done.stderr
    assert result_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize(
    ("function", "name"), [("np.unique(params['w'])", "np.unique"), ("np.linalg.svd(params['w'])[0]", "np.linalg.svd")]
)
def test_a_function_that_is_not_covered_is_named(job, tmp_path, function, name):
    """Not at all, and not in this form: the vectors of a full decomposition of a matrix that is not square."""
    (tmp_path / "my_model.py").write_text(MODEL.replace('batch["x"] @ params["w"]', function, 1))
    done = dtrain("run", job(model={"entry": "my_model.py"}), "--workers", 1, "--run-dir", tmp_path / "run", "-q")
    assert done.returncode == 2
    assert name in done.stderr
    assert "my_model.py:8" in done.stderr


def test_nan_in_the_data_is_named_with_step_shard_and_sample(job, tmp_path):
    x = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    x[137, 2] = np.nan
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(400) % 3)
    path = job(data={"name": "npz", "train": "data.npz"}, batch=100)
    done = dtrain("run", path, "--workers", 2, "--run-dir", tmp_path / "run", "-q")
    assert done.returncode in (2, 3)
    assert "137" in done.stderr
    assert "nan" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_diverging_run_fails_with_its_checkpoint_and_names_the_operation(job, tmp_path):
    path = job(optimizer={"name": "momentum", "lr": 1e25}, model={"name": "mlp", "hidden": [8]})
    done = dtrain("run", path, "--workers", 2, "--run-dir", tmp_path / "run", "-q")
    assert done.returncode == 3
    result = result_of(tmp_path / "run")
    assert result["status"] == "failed"
    assert f"step {result['step']}, shard " in result["error"]
    assert "Lower the learning rate" in result["error"]
    (event,) = (e for e in events_of(tmp_path / "run") if e["event"] == "nonfinite")
    assert event["text"] == result["error"]
    assert {k: event[k] for k in result["blame"]} == result["blame"]
    assert event["step"] == result["step"]
    assert f"shard {event['shard']}: " in event["text"]
    sampler = build(load_spec(path)).sampler()
    assert set(event["samples"]) <= set(sampler.indices(event["step"], event["shard"]).tolist())
    assert re.fullmatch(r"\S*\.py:\d+", event["line"])
    assert f"first in {event['op']}" in event["text"]
    assert f"result {event['result']}; inputs {'; '.join(event['inputs'])}" in event["text"]
    assert [int(p.name.split("-")[1]) for p in (tmp_path / "run" / "checkpoints").iterdir()] == [result["step"]]
    skipping = dtrain("run", path, "--workers", 2, "--run-dir", tmp_path / "b", "-q", "--set", "on_nonfinite=skip")
    assert skipping.returncode == 0
    skipped = [s["step"] for s in steps_of(tmp_path / "b") if s.get("is_skipped")]
    first = next(e for e in events_of(tmp_path / "b") if e["event"] == "nonfinite")
    assert first["step"] == skipped[0] == event["step"]
    assert first["text"].endswith("the step is skipped")
    assert first["shard"] is not None


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(job, tmp_path):
    """The model can be imported by the command, but not by its workers."""
    (tmp_path / "my_model.py").write_text(
        "import os\nif os.getppid() != int(os.environ['DTRAIN_TEST_MAIN']):\n"
        "    raise RuntimeError('no such library')\n" + MODEL
    )
    environment = {**os.environ, "DTRAIN_TEST_MAIN": str(os.getpid())}
    done = dtrain(
        "run", job(model={"entry": "my_model.py"}), "--workers", 2, "--run-dir", tmp_path / "run", "-q", env=environment
    )
    assert done.returncode == 2
    assert "RuntimeError: no such library" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_costs_the_record_and_says_so_and_training_goes_on(job, tmp_path):
    """In a mount namespace of its own, with 300 kB of room, and later with more."""
    path = job(epochs=3, checkpoint={"every": "6 steps", "keep": 2}, model={"name": "mlp", "hidden": [128]})
    run = f"{tmp_path}/small/run"
    line = shlex.join(map(str, command("run", path, "--workers", 2, "--run-dir", run, "-q", "--json")))
    script = f"mkdir {tmp_path}/small && mount -t tmpfs -o size=300k none {tmp_path}/small && {line}; code=$?; "
    script += f"cp -r {run} {tmp_path}/kept; exit $code"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "failed"
    assert result["step"] == 36  # trained to the end
    assert "No space left on device" in result["error"]
    whole = dtrain("run", path, "--workers", 1, "--run-dir", tmp_path / "whole", "-q", "--json")
    assert result["fingerprint"] == json.loads(whole.stdout)["fingerprint"]
    kept = tmp_path / "kept"
    names = {p.name for p in (kept / "checkpoints").iterdir()}
    assert names
    assert "step-00000036" not in names
    resumed = dtrain("resume", kept, "--workers", 1, "-q", "--json")
    assert json.loads(resumed.stdout)["fingerprint"] == result["fingerprint"]


def test_two_processes_cannot_run_one_directory(job, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("run", job(epochs=3000), "--workers", 1, "--run-dir", run, "-q"), stdout=subprocess.DEVNULL
    )
    wait_until(lambda: has_stepped(run))
    second = dtrain("resume", run)
    assert dtrain("status", run).stdout.startswith("running at step ")
    process.send_signal(2)
    process.wait(30)
    assert second.returncode == 2
    assert f"process {process.pid} runs it" in second.stderr


def test_metrics_are_served_while_the_run_lasts(job, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("run", job(epochs=3000), "--workers", 2, "--run-dir", run, "-q"), stdout=subprocess.DEVNULL
    )
    wait_until(lambda: has_stepped(run))
    endpoint = json.loads((run / "endpoint.json").read_text())
    assert endpoint["url"].startswith("http://127.0.0.1:")
    request = urllib.request.Request(endpoint["url"], headers={"Authorization": f"Bearer {endpoint['token']}"})
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    process.send_signal(2)
    process.wait(30)
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    assert samples["dtrain_world_size", ()] == 2
    assert samples["dtrain_steps_total", ()] > 0
    assert samples["dtrain_samples_total", ()] > 0
    assert samples["dtrain_learning_rate", ()] == 2e-3
    assert np.isfinite(samples["dtrain_loss", ()])
    assert samples["dtrain_gradient_norm", ()] > 0
    assert any(name == "dtrain_parameter_gradient_norm" for name, _ in samples)
    phases = {labels for name, labels in samples if name == "dtrain_phase_seconds_total"}
    assert len(phases) == 2 * 6
    assert samples["dtrain_job_state", (("state", "running"),)] == 1
    assert {labels[0][1] for name, labels in samples if name == "dtrain_resident_memory_bytes"} == {
        "coordinator",
        *(dict(labels)["worker"] for labels in phases),
    }
    linted = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")
    assert not (run / "endpoint.json").exists()


def test_a_token_file_keeps_the_token_from_run_to_run(job, tmp_path):
    path = job(monitor={"metrics_port": 0, "token_file": "token"}, epochs=3000)
    for attempt in range(2):
        run = tmp_path / f"run{attempt}"
        process = subprocess.Popen(
            command("run", path, "--workers", 1, "--run-dir", run, "-q"), stdout=subprocess.DEVNULL
        )
        wait_until(lambda: has_stepped(run))  # noqa: B023
        token = (tmp_path / "token").read_text()
        assert json.loads((run / "endpoint.json").read_text())["token"] == token
        process.send_signal(2)
        process.wait(30)
        if attempt == 0:
            first = token
            assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert token == first
    (tmp_path / "token").write_text("short")
    done = dtrain("run", path, "-q")
    assert done.returncode == 2
    assert "monitor.token_file" in done.stderr


def test_a_terminal_shows_a_live_line(job, tmp_path):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command("run", job(epochs=30), "--workers", 2, "--run-dir", tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            data = os.read(controller, 65536)
        except OSError:  # the terminal is closed at the other end
            break
        if not data:
            break
        shown += data
    process.communicate(timeout=30)
    os.close(controller)
    assert process.returncode == 0
    text = shown.decode()
    for part in ("epoch", "step", "loss", "grad norm", "samples/s", "360"):
        assert part in text
    assert "\x1b[" in text


def test_importing_dtrain_is_light():
    code = (
        "import sys, dtrain; heavy = {'ray', 'mpi4py', 'pandas', 'starlette', 'uvicorn', 'http.server', 'torch'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
