"""Every mistake in the `data` section is one line that names the key."""

import numpy as np
import pytest

from dtrain.data import SOURCES, make_source
from dtrain.errors import InputError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "data.name: there is no data source 'digit'; did you mean 'digits'?"),
        ("digits", {"path": "a"}, "data.path: data source 'digits' has no option 'path'; choose from dtype"),
        (
            "npz",
            {"trian": "a"},
            "data.trian: data source 'npz' has no option 'trian'; .* eval, max_bytes, train",
        ),
        ("npz", {}, "data.train: expected a path, got None; give the path of an .npz file"),
        ("npz", {"train": 3}, "data.train: expected a path, got 3"),
        ("npz", {"train": ""}, "data.train: expected a path, got ''"),
        ("npy", {"y": "a"}, "data.x: expected a path, got None; give the path of an .npy file"),
        ("digits", {"dtype": "float16"}, "data.dtype: got 'float16'; .*float32, float64"),
        ("spiral", {"seed": -1}, "data.seed: expected a number at least 0"),
        ("spiral", {"classes": "three"}, "data.classes: expected a whole number, got 'three'"),
        ("blobs", {"samples": 10, "held_out": 10}, "data.held_out: expected fewer than the 10 samples, got 10"),
        ("digits", {"check": "no"}, "data.check: expected true or false, got 'no'"),
        ("synthetic", {"shape": 784}, "data.shape: expected a list, got 784"),
        ("synthetic", {"shape": [4, 0]}, "data.shape: expected a number at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        make_source(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, entry in SOURCES.items() if not entry.paths])
def test_every_source_without_files_needs_no_options(name):
    source = make_source(name)
    bits = (np.uint8, np.uint8) if "asked" in source.train else ()
    assert (source.train["x"].dtype, source.train["y"].dtype) in ((np.float32, np.int64), (np.float32, np.uint8), bits)


def test_numbers_may_be_text_as_yaml_reads_them():
    assert make_source("blobs", spread="1e-1", samples="50").n == 40


def test_paths_start_from_the_directory_of_the_job(tmp_path, monkeypatch):
    (tmp_path / "job" / "data").mkdir(parents=True)
    np.save(tmp_path / "job" / "data" / "x.npy", np.ones((3, 2)))
    np.save(tmp_path / "y.npy", np.arange(3))
    monkeypatch.setenv("HOME", str(tmp_path))
    for x, y in (("data/x.npy", "../y.npy"), (tmp_path / "job" / "data" / "x.npy", "~/y.npy")):
        source = make_source("npy", base_dir=tmp_path / "job", x=x, y=y)
        assert (source.n, source.features, source.classes) == (3, 2, 3)


def test_nan_in_a_file_is_found_by_the_process_that_checks(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1, 2], [3, np.nan]], np.float32))
    with pytest.raises(InputError, match=r"data.train: 'x' of sample 1 is nan at \[1\]"):
        make_source("npy", tmp_path, x="x.npy")
    assert make_source("npy", tmp_path, check=False, x="x.npy").n == 2
