"""What travels with a job."""

import numpy as np
import pytest
import yaml

from dtrain.errors import InputError
from dtrain.jobs import staging
from dtrain.jobs.spec import load_spec, parse_spec
from dtrain.jobs.staging import is_elsewhere, stage

JOB = {
    "name": "far",
    "model": {"name": "softmax"},
    "data": {"name": "digits"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": 32,
    "steps": 10,
}


@pytest.fixture
def home(tmp_path):
    """The user's folder, with a model, what it imports, and data."""
    folder = tmp_path / "home"
    (folder / "code" / "package").mkdir(parents=True)
    (folder / "data").mkdir()
    for name in ("code/my_model.py", "code/helper.py", "code/package/__init__.py", "code/package/net.py", "top.py"):
        (folder / name).write_text("def init(rng): ...\ndef loss(params, batch): ...\n")
    (folder / "code" / "notes.txt").write_text("private")
    np.savez(folder / "data" / "numbers.npz", x=np.zeros((4, 2)))
    return folder


@pytest.fixture
def there(tmp_path):
    folder = tmp_path / "staged"
    folder.mkdir()
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_job_of_built_in_parts_is_its_spec(home, there):
    spec = parse_spec(JOB, base_dir=home, overrides=["optimizer.lr=0.5", "workers=3"])
    staged = stage(spec, there)
    assert names(there) == ["job.yaml"]
    assert yaml.safe_load((there / "job.yaml").read_text())["base_dir"] == "."
    assert (staged.optimizer.lr, staged.workers, staged.base_dir) == (0.5, 3, str(there))
    assert staged.digest() == spec.digest()


def test_a_model_travels_with_the_files_beside_it_and_no_others(home, there):
    spec = parse_spec(JOB | {"model": {"entry": "code/my_model.py:Net", "width": 3}}, base_dir=home)
    staged = stage(spec, there)
    assert names(there) == ["helper.py", "job.yaml", "my_model.py"]
    assert (staged.model.entry, staged.model.options) == ("my_model.py:Net", {"width": 3})
    assert staged.digest() == spec.digest()


@pytest.mark.parametrize(
    ("base", "entry", "expected"),
    [
        ("code", "package.net:make", ["job.yaml", "package/__init__.py", "package/net.py"]),
        (".", "top", ["job.yaml", "top.py"]),
        (".", "sklearn.thing", ["job.yaml"]),
    ],
)
def test_a_module_travels_if_it_is_the_users(home, there, base, entry, expected):
    stage(parse_spec(JOB | {"model": {"entry": entry}}, base_dir=home / base), there)
    assert names(there) == expected


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_small_data_travels(home, there, kind):
    path = "data/numbers.npz" if kind == "relative" else str(home / "data" / "numbers.npz")
    spec = parse_spec(JOB | {"data": {"name": "npz", "train": path, "eval": path, "dtype": "keep"}}, base_dir=home)
    staged = stage(spec, there)
    assert names(there) == ["data/eval.npz", "data/train.npz", "job.yaml"]
    assert staged.data.options == {"train": "data/train.npz", "eval": "data/eval.npz", "dtype": "keep"}
    assert (there / "data" / "eval.npz").read_bytes() == (home / "data" / "numbers.npz").read_bytes()
    assert not is_elsewhere(spec)


def test_large_data_is_named_and_is_to_be_put_on_shared_storage(home, there, monkeypatch):
    size = (home / "data" / "numbers.npz").stat().st_size
    monkeypatch.setattr(staging, "LIMIT_BYTES", size + size // 2)
    spec = parse_spec(
        JOB | {"data": {"name": "npz", "train": "data/numbers.npz", "eval": "data/numbers.npz"}}, base_dir=home
    )
    with pytest.raises(
        InputError, match=r"^data\.eval: .*numbers\.npz has .* MB.*: put it on storage that all nodes share"
    ):
        stage(spec, there)  # the limit is for all files together


def test_large_data_that_is_named_by_an_absolute_path_is_taken_to_be_there(home, there, monkeypatch):
    monkeypatch.setattr(staging, "LIMIT_BYTES", 10)
    path = str(home / "data" / "numbers.npz")
    assert stage(parse_spec(JOB | {"data": {"name": "npz", "train": path}}), there).data.options["train"] == path
    assert names(there) == ["job.yaml"]


def test_data_that_is_only_there(home, there):
    spec = parse_spec(JOB | {"data": {"name": "npz", "train": "/mnt/shared/numbers.npz"}}, base_dir=home)
    assert is_elsewhere(spec)
    assert stage(spec, there).data.options["train"] == "/mnt/shared/numbers.npz"
    missing = parse_spec(JOB | {"data": {"name": "npz", "train": "gone.npz"}}, base_dir=home)
    assert not is_elsewhere(missing)
    with pytest.raises(InputError, match=r"^data\.train: .*gone\.npz cannot be read: No such file or directory$"):
        stage(missing, there)


def test_a_staged_job_is_a_job_of_its_own(home, there, tmp_path):
    data = {"name": "npz", "train": "data/numbers.npz"}
    spec = parse_spec(JOB | {"model": {"entry": "code/my_model.py"}, "data": data}, base_dir=home)
    stage(spec, there)
    moved = there.rename(tmp_path / "elsewhere")
    again = load_spec(moved / "job.yaml")
    assert again.resolve(again.data.options["train"]).is_file()
    assert again.entry().file == moved / "my_model.py"
