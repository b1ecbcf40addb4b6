"""Windows of characters: the text of Python itself or a file's, what is held out, and mistakes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtrain.data import make_source
from dtrain.data.characters import zen_of_python
from dtrain.errors import InputError


def test_the_zen_is_the_same_everywhere_and_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = zen_of_python()
    assert text.startswith("The Zen of Python, by Tim Peters\n\nBeautiful is better than ugly.")
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e250f274f33b9b62"
    assert capsys.readouterr().out == ""


def test_y_is_the_next_character_of_x() -> None:
    source, alphabet = make_source("characters", window=10), sorted(set(zen_of_python()))
    assert (source.features, source.classes) == (10, len(alphabet))
    read = ["".join(alphabet[i] for i in row) for row in source.train["x"]]
    assert read[:2] == ["The Zen of", "he Zen of "]
    np.testing.assert_array_equal(source.train["x"][:, 1:], source.train["y"][:, :-1])
    assert "".join(alphabet[i] for i in source.train["y"][0]) == "he Zen of "
    assert source.train["x"].dtype == source.train["y"].dtype == np.int64


def test_train_and_held_out_share_no_character(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("aé" * 20 + "xyz" * 5)
    source = make_source("characters", tmp_path, file="text.txt", window=3, stride=4, held_out=0.28)
    assert source.classes == 5
    assert {*source.train["x"].ravel(), *source.train["y"].ravel()} == {0, 4}
    assert {*source.eval["x"].ravel(), *source.eval["y"].ravel()} == {1, 2, 3}
    assert (source.n, source.n_eval) == (10, 3)


def test_nothing_need_be_held_out() -> None:
    assert make_source("characters", held_out=0).n_eval == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 900}, "data.window: expected fewer than the 771 characters that are train, got 900"),
        ({"held_out": 0.01}, "data.window: expected fewer than the 8 characters that are held out, got 32"),
        ({"file": "missing.txt"}, r"data.file: .*missing.txt cannot be read: No such file"),
        ({"file": "bytes.txt"}, r"data.file: .*bytes.txt is not text in UTF-8"),
        ({"file": 3}, "data.file: expected a path, got 3; give the path of a text file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match=message):
        make_source("characters", tmp_path, **options)
