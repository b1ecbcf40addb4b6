"""Jobs on a cluster, without one: what is read from Ray's words and from the log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from dtrain.errors import DtrainError, InputError
from dtrain.jobs import ray_jobs
from dtrain.jobs.ray_client import told
from dtrain.jobs.ray_jobs import RayJobs

RESULT = {"status": "stopped", "step": 7, "train_loss": 0.5, "exit_code": 143, "fingerprint": "ab", "seconds": 1.0}
LOG = """2026-11-25 08:42:16,664 INFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job a-1: …; echo "dtrain $v starts in $D"; exec dtrain run
dtrain 0.1.0 starts in /data/runs/a/1
a: 24 steps of 128 samples in 8 shards on 2 workers
epoch 1/2  step 1/24  loss 2.4980  grad norm 1.7824  3.5k samples/s  0:01 left
epoch 1  step 12  eval loss 0.9174  accuracy 81.11 %
epoch 1/2  step 12/24  loss 1.2e+00  grad norm 2.2622
"""


@dataclass
class Status:
    value: str

    def is_terminal(self) -> bool:
        return self.value in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class Details:
    submission_id: str
    status: Status
    metadata: dict[str, str] | None
    start_time: int = 0
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Client:
    """As much of Ray's client as these tests need; ``tails`` are what successive connections to a log yield."""

    jobs: list[Details]
    logs: dict[str, str] = field(default_factory=dict)
    tails: list[Any] = field(default_factory=list)

    def list_jobs(self) -> list[Details]:
        return self.jobs

    def get_job_info(self, submission: str) -> Details:
        return next(job for job in self.jobs if job.submission_id == submission)

    def get_job_logs(self, submission: str) -> str:
        return self.logs[submission]

    async def tail_job_logs(self, submission: str) -> Any:
        for piece in self.tails.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece


def attempt(submission: str, status: str, run: str, start: int = 0, **changes: Any) -> Details:
    return Details(submission, Status(status), {"dtrain_run": run, "dtrain_steps": "24"}, start, **changes)


@pytest.fixture
def place(monkeypatch):
    def make(client: Client) -> RayJobs:
        monkeypatch.setattr(ray_jobs, "connect", lambda address: client)
        return RayJobs("http://far:8265")

    return make


def test_a_job_is_described_from_its_log_and_ray(place):
    client = Client([attempt("a-1", "RUNNING", "a/1", 5000)], {"a-1": LOG})
    (job,) = place(client).all()
    assert (job.id, job.status, job.step, job.steps, job.loss, job.started) == ("a-1", "running", 12, 24, 1.2, 5.0)
    assert (job.run_directory, job.exit_code) == ("/data/runs/a/1", None)
    client.jobs[0].status = Status("STOPPED")
    client.logs["a-1"] += f"{json.dumps(RESULT)}\ngo on with: dtrain resume x\n"
    job = place(client).get("a-1")
    assert (job.status, job.step, job.loss, job.exit_code) == ("stopped", 7, 0.5, 143)
    assert job.to_json()["fingerprint"] == "ab"


def test_only_jobs_of_dtrain_are_listed_one_line_a_run_the_newest_last(place):
    jobs = [
        attempt("b-1", "SUCCEEDED", "b/1", 30),
        Details("raysubmit_x", Status("RUNNING"), None, 50),
        Details("raysubmit_y", Status("RUNNING"), {"dtrain_fetch": "a/1"}, 60),
        attempt("evil", "RUNNING", "../../x", 70),
        attempt("evil", "RUNNING", 'a/1"; rm -rf "', 80),
        attempt("a-1-2", "RUNNING", "a/1", 20),
        attempt("a-1", "STOPPED", "a/1", 10),
    ]
    found = place(Client(jobs, dict.fromkeys(("b-1", "a-1", "a-1-2"), ""))).all()
    assert [job.id for job in found] == ["a-1-2", "b-1"]


@pytest.mark.parametrize(("name", "found"), [("a-1", "a-1-2"), ("a-1-2", "a-1-2"), ("a/1", "a-1-2"), ("2", "b-2")])
def test_an_id_names_a_run_whose_newest_attempt_is_meant(place, name, found):
    jobs = [
        attempt("a-1", "STOPPED", "a/1", 10),
        attempt("a-1-2", "RUNNING", "a/1", 20),
        attempt("b-2", "FAILED", "b/2"),
    ]
    jobs.append(attempt("b-1", "FAILED", "b/1"))
    place_ = place(Client(jobs, dict.fromkeys(("a-1-2", "b-2"), "")))
    assert place_.get(name).id == found
    with pytest.raises(InputError, match=r"^1: several runs have this id: a/1, b/1; say which$"):
        place_.get("1")
    with pytest.raises(InputError, match=r"^c: no such job of dtrain at http://far:8265; see dtrain list$"):
        place_.get("c")


@pytest.mark.parametrize(
    ("status", "code", "result", "expected"),
    [
        ("RUNNING", None, {}, None),
        ("SUCCEEDED", 0, {}, 0),
        ("FAILED", 4, {}, 4),
        ("FAILED", -9, {}, 3),
        ("FAILED", None, {}, 3),
        ("STOPPED", None, {}, 143),
        ("STOPPED", None, RESULT | {"exit_code": 130}, 130),
        ("FAILED", 143, RESULT, 143),
        ("STOPPED", None, RESULT | {"status": "succeeded", "exit_code": 0}, 0),
    ],
)
def test_the_exit_code_is_the_jobs_own(place, status, code, result, expected):
    client = Client([attempt("a-1", status, "a/1", driver_exit_code=code)], {"a-1": json.dumps(result)})
    job = place(client).get("a-1")
    assert job.exit_code == expected
    assert job.status == result.get("status", status.lower())


def test_a_result_is_shown_as_a_run_shows_it(place):
    client = Client([attempt("a-1", "STOPPED", "a/1")], {"a-1": f"{LOG}{json.dumps(RESULT)}\n"})
    text = "".join(place(client).log("a-1", follow=False))
    assert "stopped after 7 steps in 1.0 s" in text
    assert "{" not in text


def test_a_connection_that_breaks_is_made_anew_and_nothing_is_said_twice(place, monkeypatch):
    monkeypatch.setattr(ray_jobs, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(ray_jobs, "_RECONNECT_SECONDS", 0.0)
    job = attempt("a-1", "RUNNING", "a/1")
    client = Client([job], {"a-1": "one\ntwo\nthree\nfour"})

    client.tails = [["one\nt", RuntimeError("closed")], ["one\n", "two\nthr", OSError("gone")], ["one\ntwo\nthree\n"]]
    said = []
    for line in place(client).log("a-1", follow=True):
        said.append(line)
        if line == "two\n":
            job.status = Status("STOPPED")
    assert said == ["one\n", "two\n", "three\n", "four"]
    client.tails = [[RuntimeError("closed")]] * 9
    job.status = Status("RUNNING")
    with pytest.raises(DtrainError, match="the log of a-1 breaks off: closed"):
        list(place(client).log("a-1", follow=True))


def test_rays_errors_become_one_line():
    class AuthenticationError(Exception):
        pass

    cases = {
        RuntimeError(
            "Request failed with status code 500: Traceback:\n  File x\nValueError: no disk\n"
        ): "ValueError: no disk",
        AuthenticationError("Authentication failed: no\n\nlong advice"): "refuses the token",
        AuthenticationError("Authentication required: no\n\nlong advice"): "asks for a token",
        ConnectionError("Failed to connect"): "cannot be reached",
        TimeoutError(): "does not answer in time",
    }
    for error, message in cases.items():
        with pytest.raises(DtrainError, match=message) as caught, told("http://far:8265"):
            raise error
        assert str(caught.value).startswith("http://far:8265: ")
        assert "\n" not in str(caught.value)
