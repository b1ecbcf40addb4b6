"""`dtrain race`: the lecture's step counts, functions of the user's own, pictures, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from dtrain.jobs import racing
from tests.support import dtrain

SEVEN = ["sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam"]


def race(*arguments, cwd=None):
    return dtrain("race", *arguments, cwd=cwd)


@pytest.mark.parametrize(
    ("course", "steps", "expected"),
    [
        ("beale", 500, [None, 185, 205, 454, 289, 199, 253]),
        ("saddle", 400, [349, 72, 67, 17, 27, 72, 77]),
        ("valley", 2600, [None, 2581, 2583, 96, None, 127, 81]),
    ],
)
def test_the_first_steps_at_the_goal_are_the_lectures(course, steps, expected):
    _, walks = racing.race(course, None, steps, [], None)
    assert [walk.rule for walk in walks] == SEVEN
    assert [walk.arrived for walk in walks] == expected


def test_a_race_on_noisy_moons_lowers_every_loss_and_momentum_is_ahead_of_sgd():
    done = race("noisy-moons", "--json", "--steps", "40")
    walks = {walk["rule"]: walk for walk in json.loads(done.stdout)["walks"]}
    assert list(walks) == SEVEN
    assert all(walk["losses"][-1] < 0.7 * walk["losses"][0] for walk in walks.values())
    assert walks["momentum"]["losses"][-1] < walks["sgd"]["losses"][-1]
    assert all(len(walk["positions"]) == 41 for walk in walks.values())


def test_a_rate_that_is_too_high_is_told_and_the_others_go_on(tmp_path):
    done = race("beale", "--lr", "momentum=0.01", "--rules", "momentum,adam", "-o", "race.svg", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == ["momentum", "0.01"]
    assert lines[1].endswith("not finite")
    assert lines[2].endswith("after 253 steps")
    texts = (tmp_path / "race.svg").read_text()
    assert ElementTree.fromstring(texts).tag.endswith("svg")
    assert "momentum, 0.01: not finite" in texts


def test_a_function_of_ones_own_with_an_animation(tmp_path):
    (tmp_path / "mine.py").write_text("import numpy as np\ndef bowl(x=1.0, y=2.0):\n    return np.cosh(x) + y * y\n")
    done = race("mine.py:bowl", "--steps", "8", "--animation", "race.gif", "--rules", "sgd,adam", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("sgd")
    with Image.open(tmp_path / "race.gif") as picture:
        assert picture.n_frames == 9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bele"], "race: there is no course 'bele'; did you mean 'beale'?"),
        (["beale", "--lr", "adam"], "--lr adam: expected RULE=RATE, for example adam=0.1"),
        (["beale", "--rules", "adma"], "--rules: there is no rule in the race 'adma'"),
        (["beale", "--start", "1"], "--start: beale is a function of 2 numbers, got 1"),
        (["beale", "--start", "1,x"], "--start: expected a number, got 'x'"),
        (["beale", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["beale", "-o", "race.jpg"], "race: expected a picture .svg or .png, got race.jpg"),
        (["nowhere.py:f"], "race: nowhere.py: no such file"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, tmp_path):
    done = race(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"dtrain: {said}")
    assert len(done.stderr.splitlines()) == 1
    assert list(Path(tmp_path).iterdir()) == []
