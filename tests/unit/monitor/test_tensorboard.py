"""Event files, read by TensorBoard's own reader."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrain.errors import InputError
from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.tensorboard import TensorBoardLog, check_installed

RECORD = StepRecord(0, 0, 0.5, 2.0, 1.0, 0.125, 32, 1.5)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_steps_and_evaluations_are_scalars(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, 0)
    norms = {"w": 0.25, "b": 4.0}
    log.append(replace(RECORD, parameter_norms=norms, weight_norms=norms, update_norms=norms, noise={"scale": 64.0}))
    log.append(EvalRecord(1, 0, 0.75, {"accuracy": 0.5}))
    log.close()
    assert points(tmp_path) == {
        "train/loss": [(0, 0.5)],
        "train/gradient_norm": [(0, 2.0)],
        "train/learning_rate": [(0, 0.125)],
        "train/gradient_noise_scale": [(0, 64.0)],
        **{
            f"{kind}/{n}": [(0, v)]
            for kind in ("gradient_norm", "parameter_norm", "update_norm")
            for n, v in norms.items()
        },
        "eval/loss": [(1, 0.75)],
        "eval/accuracy": [(1, 0.5)],
    }


def test_a_point_is_written_ten_times_a_second_and_at_each_sampled_step(tmp_path: Path) -> None:
    now = 5.0
    log = TensorBoardLog(tmp_path, 0, clock=lambda: now)
    for step in range(10):
        now += 0.04
        log.append(replace(RECORD, step=step, update_norms={"w": 1.0} if step == 4 else None))
    log.close()
    assert [step for step, _ in points(tmp_path)["train/loss"]] == [0, 3, 4, 7]


def test_a_resumed_run_takes_the_place_of_later_steps(tmp_path: Path) -> None:
    for first, loss in ((0, 1.0), (3, 2.0)):
        now = 0.0
        log = TensorBoardLog(tmp_path, first, clock=lambda: now)  # noqa: B023
        for step in range(first, first + 5):
            now += 1.0
            log.append(replace(RECORD, step=step, loss=loss))
        log.close()
    found = points(tmp_path)["train/loss"]
    assert sorted(set(found)) == [(0, 1.0), (1, 1.0), (2, 1.0), *((step, 2.0) for step in range(3, 8))]


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    found = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        InputError, match=r"^monitor\.tensorboard: .* install dtrain\[tensorboard\], or set it to false$"
    ):
        check_installed()
