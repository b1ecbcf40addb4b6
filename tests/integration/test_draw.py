"""`dtrain draw` draws a job and a function, and tells a mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dtrain.commands import app
from dtrain.errors import InputError

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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "expected a job file"),
        (["none.py:f"], "none.py: no such file"),
        (["math:nothing"], "no function nothing"),
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
    with pytest.raises(InputError, match=words) as raised:
        run(*arguments)
    assert "\n" not in str(raised.value)
