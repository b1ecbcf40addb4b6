"""`dtrain draw` draws a job and a function, and tells a mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dtrain.commands import app
from dtrain.errors import InputError

USER = """
# functions that cannot be drawn
def f(x=1.0):
    raise KeyError("no | such")
def leaves(x=1.0):
    raise SystemExit(4)
def nothing(x=1.0):
    return None
def branch(x=1.0):
    return x if x > 0 else -x
def keyword(x=3.0, *, y=2.0):
    return x * y
"""
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> None:
    result = CliRunner().invoke(app, ["draw", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def test_a_job_and_a_function_are_drawn(tmp_path: Path) -> None:
    out = tmp_path / "graph.svg"
    run(str(ROOT / "examples" / "digits.yaml"), "-o", str(out))
    assert ">layers.0.w<" in out.read_text()
    (tmp_path / "circuit.py").write_text("def f(x=-2, y=5, z=-4):\n    return (x + y) * z\n")
    run(f"{tmp_path / 'circuit.py'}:f", "-o", str(out), "--arg", "z=-5")
    text = out.read_text()
    assert ">-15<" in text
    assert ">z<" in text
    (tmp_path / "user.py").write_text(USER)
    run(f"{tmp_path / 'user.py'}:keyword", "-o", str(out))
    assert ">6<" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "expected a job file"),
        (["none.py:f"], "none.py: no such file"),
        (["math:nothing"], "no function nothing"),
        (["user.py:f"], r"KeyError: 'no \| such'; made at user.py:4"),
        (["user.py:leaves"], r"SystemExit: 4; made at user.py:6"),
        (["user.py:nothing"], "it returns a NoneType"),
        (["user.py:branch"], r"truth value of a traced array at user.py:10"),
        (["left.py:f"], r"left.py cannot be imported: SystemExit: 4 at left.py:1"),
        (["math:hypot"], "its arguments are not known"),
        (["circuit.py:f"], "x has no value"),
        (["circuit.py:f", "--arg", "y=1"], "has the arguments x"),
        (["circuit.py:f", "--arg", "x=word"], "expected a number"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circuit.py").write_text("def f(x):\n    return x\n")
    Path("left.py").write_text("raise SystemExit(4)\n")
    Path("user.py").write_text(USER)
    with pytest.raises(InputError, match=words) as raised:
        run(*arguments)
    assert "\n" not in str(raised.value)
