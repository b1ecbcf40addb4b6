"""The job spec: what is accepted, what is refused and in which words."""

import pytest
from pydantic import ValidationError

from dtrain.errors import InputError
from dtrain.jobs.spec import Every, JobSpec, json_schema, load_spec, parse_spec

DIGITS = """\
name: digits-mlp
seed: 0
model: {name: mlp, hidden: [128, 64], activation: relu}
data: {name: digits}
loss: softmax_cross_entropy
optimizer: {name: adam, lr: 1e-3, clip_norm: 1.0}
batch: 128            # global mini-batch
shards: 8
epochs: 20
workers: auto
eval: {every: 1 epoch}
checkpoint: {every: 30s, keep: 3}
"""
SMALL = {
    "model": {"name": "softmax"},
    "data": {"name": "digits"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "batch": 32,
    "steps": 10,
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in a fresh folder that is the current one, so that messages name it as a user would."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="digits.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write


def errors_of(path, overrides=()):
    with pytest.raises(InputError) as caught:
        load_spec(path, overrides)
    return str(caught.value).splitlines()


def changed(**changes):
    return parse_spec({key: value for key, value in (SMALL | changes).items() if value is not ...})


def test_the_example_of_the_design(write, tmp_path):
    spec = load_spec(write(DIGITS))
    assert (spec.name, spec.seed, spec.batch, spec.shards, spec.epochs, spec.steps) == (
        "digits-mlp",
        0,
        128,
        8,
        20,
        None,
    )
    assert (spec.model.name, spec.model.options) == ("mlp", {"hidden": [128, 64], "activation": "relu"})
    assert (spec.data.name, spec.data.options, spec.loss) == ("digits", {}, "softmax_cross_entropy")
    assert (spec.optimizer.name, spec.optimizer.lr, spec.optimizer.clip_norm) == ("adam", 0.001, 1.0)
    assert (spec.workers, spec.eval.every, spec.checkpoint.every) == ("auto", Every(1, "epochs"), Every(30, "seconds"))
    assert spec.base_dir == str(tmp_path)


def test_defaults():
    spec = parse_spec(SMALL)
    assert (spec.shards, spec.workers, spec.on_nonfinite, spec.timeout_seconds, spec.dtype) == (
        8,
        "auto",
        "stop",
        5.0,
        "float32",
    )
    assert (spec.checkpoint.keep, spec.monitor.metrics_port, spec.seed, spec.loss) == (3, 0, 0, None)
    assert (spec.optimizer.schedule.name, spec.optimizer.schedule.warmup_steps) == ("constant", 0)
    assert spec.optimizer.weight_decay is None  # so that AdamW keeps its own default


def test_toml_gives_the_same_spec(write):
    toml = """
name = "digits-mlp"
loss = "softmax_cross_entropy"
batch = 128
epochs = 20
model = {name = "mlp", hidden = [128, 64], activation = "relu"}
data = {name = "digits"}
optimizer = {name = "adam", lr = 1e-3, clip_norm = 1}
eval = {every = "1 epoch"}
"""
    assert load_spec(write(toml, "digits.toml")) == load_spec(write(DIGITS))


def test_a_spec_is_frozen():
    spec = parse_spec(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        spec.batch = 3
    with pytest.raises(ValidationError, match="frozen"):
        spec.optimizer.lr = 3.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr:", "lrr:", "digits.yaml: optimizer.lrr: unknown key; did you mean lr?"),
        ("batch: 128", "batch: 128\nbacth: 3", "digits.yaml: bacth: unknown key; did you mean batch?"),
        ("seed: 0", "colour: red", None),
        ("keep: 3", "kepe: 3", "digits.yaml: checkpoint.kepe: unknown key; did you mean keep?"),
        ("{name: mlp,", "{nmae: mlp,", "digits.yaml: model.nmae: unknown key; did you mean name?"),
        ("{name: mlp,", "{", "digits.yaml: model: expected exactly one of name and entry, for example {name: mlp} or "
         "{entry: my_model.py}"),
        ("{name: mlp,", "{name: mlp, entry: a.py,", "digits.yaml: model: expected exactly one of name and entry, for "
         "example {name: mlp} or {entry: my_model.py}"),
        ("{name: digits}", "digits", 'digits.yaml: data: expected a mapping, got "digits"; write {name: digits}'),
        ("{every: 1 epoch}", "often", 'digits.yaml: eval: expected a mapping, got "often"'),
        ("{name: digits}", "{}", "digits.yaml: data.name: missing; add it"),
        ("batch: 128 ", "", "digits.yaml: batch: missing; add it"),
        ("batch: 128", "batch: many", 'digits.yaml: batch: expected an integer, got "many"'),
        ("batch: 128", "batch: 128.5", "digits.yaml: batch: expected an integer, got 128.5"),
        ("batch: 128", "batch: yes", "digits.yaml: batch: expected an integer, got true"),
        ("batch: 128", "batch: 0", "digits.yaml: batch: expected at least 1, got 0"),
        ("batch: 128", "batch: [1]", "digits.yaml: batch: expected an integer, got [1]"),
        ("shards: 8", "shards: -8", "digits.yaml: shards: expected at least 1, got -8"),
        ("seed: 0", "seed: -1", "digits.yaml: seed: expected at least 0, got -1"),
        ("lr: 1e-3", "lr: -1e-3", "digits.yaml: optimizer.lr: expected at least 0, got -0.001"),
        ("lr: 1e-3", "lr: fast", 'digits.yaml: optimizer.lr: expected a number, got "fast"'),
        ("lr: 1e-3", "lr: .nan", "digits.yaml: optimizer.lr: expected a finite number, got nan"),
        ("clip_norm: 1.0", "clip_norm: 0", "digits.yaml: optimizer.clip_norm: expected more than 0, got 0"),
        ("epochs: 20", "epochs: 20\nsteps: 3", "digits.yaml: epochs and steps are both given; keep one and remove the "
         "other or set it to null"),
        ("epochs: 20", "", "digits.yaml: epochs: missing; say how long to train with epochs or steps"),
        ("name: digits-mlp", "name: ../up", "digits.yaml: name: expected letters, digits, '.', '_' and '-', at most 64 "
         'and none of the signs first, got "../up"'),
        ("name: digits-mlp", "name: 3", "digits.yaml: name: expected text, got 3"),
        ("name: mlp,", "entry: my model,", "digits.yaml: model.entry: expected my_model.py, my_model.py:name, "
         'package.module or package.module:name, got "my model"'),
        ("workers: auto", "workers: -1", "digits.yaml: workers: expected auto or an integer of at least 0, got -1"),
        ("workers: auto", "workers: all", 'digits.yaml: workers: expected auto or an integer of at least 0, got "all"'),
        ("1 epoch", "10s", "digits.yaml: eval.every: expected an interval in steps or epochs, got \"10s\"; the record "
         "must not depend on time"),
        ("30s", "30 parsecs", 'digits.yaml: checkpoint.every: expected an interval like 500 steps, 1 epoch or 30s, got '
         '"30 parsecs"'),
        ("30s", "1.5", "digits.yaml: checkpoint.every: expected an interval like 500 steps, 1 epoch or 30s, got 1.5"),
        ("30s", "yes", "digits.yaml: checkpoint.every: expected an interval like 500 steps, 1 epoch or 30s, got true"),
        ("30s", "0", "digits.yaml: checkpoint.every: expected an interval of at least 1, got 0; null turns it off"),
        ("workers: auto", "on_nonfinite: go", 'digits.yaml: on_nonfinite: expected stop or skip, got "go"'),
        ("workers: auto", "timeout_seconds: 0", "digits.yaml: timeout_seconds: expected more than 0, got 0"),
        ("workers: auto", "monitor: {address: 0.0.0.0}",
         "digits.yaml: monitor: address 0.0.0.0 can be reached by others, so token_file is needed: name a file for the "
         "token"),
        ("workers: auto", "monitor: {sd_directory: sd, metrics_port: null}",
         "digits.yaml: monitor: sd_directory tells of an endpoint, and metrics_port is null; give a port, or 0"),
        ("workers: auto", "monitor: {pushgateway: localhost:9091}",
         'digits.yaml: monitor.pushgateway: expected http://HOST:PORT or https://HOST:PORT, got "localhost:9091"'),
        ("workers: auto", "monitor: {textfile: figures.txt}",
         "digits.yaml: monitor.textfile: expected a path that ends in .prom, which is what node_exporter reads, got "
         '"figures.txt"'),
        ("workers: auto", "monitor: {metrics_port: 70000}",
         "digits.yaml: monitor.metrics_port: expected at most 65535, got 70000"),
        ("workers: auto", "dtype: float16", 'digits.yaml: dtype: expected float32 or float64, got "float16"'),
        ("clip_norm: 1.0", "schedule: cosine",
         'digits.yaml: optimizer.schedule: expected a mapping, got "cosine"; write {name: cosine}'),
        ("clip_norm: 1.0", "schedule: {name: cosine, warmup_stesp: 3}",
         "digits.yaml: optimizer.schedule.warmup_stesp: unknown key; did you mean warmup_steps?"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(write, old, new, message):
    assert old in DIGITS
    lines = errors_of(write(DIGITS.replace(old, new, 1)))
    assert len(lines) == 1
    if message is None:
        assert lines[0].startswith("digits.yaml: colour: unknown key; expected one of name, seed, model, data, loss, ")
    else:
        assert lines[0] == message


def test_all_mistakes_of_a_file_are_told_at_once(write):
    text = (
        DIGITS.replace("lr:", "lrr:")
        .replace("batch:", "bach:")
        .replace("keep: 3", "keep: few")
        .replace("epochs: 20", "")
    )
    assert errors_of(write(text)) == [
        "digits.yaml: optimizer.lrr: unknown key; did you mean lr?",
        "digits.yaml: batch: missing; add it",
        'digits.yaml: checkpoint.keep: expected an integer, got "few"',
        "digits.yaml: bach: unknown key; did you mean batch?",
        "digits.yaml: epochs: missing; say how long to train with epochs or steps",
    ]


def test_a_document_that_is_no_mapping(write):
    assert errors_of(write("- 1\n")) == ["digits.yaml: expected a mapping of keys to values, got [1]"]


def test_overrides_win_and_are_blamed_for_their_own_mistakes(write):
    path = write(DIGITS)
    spec = load_spec(
        path, ["optimizer.lr=2e-3", "model.hidden=[32]", "epochs=null", "steps=7", "monitor.metrics_port=null"]
    )
    assert (spec.optimizer.lr, spec.model.options["hidden"], spec.steps, spec.epochs) == (0.002, [32], 7, None)
    assert spec.monitor.metrics_port is None
    assert errors_of(path, ["optimizer.lr=-1", "checkpoint.kep=3", "data=3"]) == [
        "--set data=3: expected a mapping, got 3",
        "--set optimizer.lr=-1: expected at least 0, got -1",
        "--set checkpoint.kep=3: unknown key; did you mean keep?",
    ]
    assert errors_of(path, ["optimizer={name: sgd}"]) == ["--set optimizer={name: sgd}: optimizer.lr: missing; add it"]


def test_an_option_that_resembles_a_key_is_an_option_when_that_key_is_there():
    spec = changed(data={"name": "csv", "names": ["a", "b"]})
    assert spec.data.options == {"names": ["a", "b"]}
    assert changed(model={"entry": "module", "names": 1}).model.options == {"names": 1}


def test_the_name_is_that_of_the_file(write):
    text = DIGITS.replace("name: digits-mlp\n", "")
    assert load_spec(write(text, "my job!.yaml")).name == "my-job"
    assert load_spec(write(text, "!!.yaml")).name == "job"


@pytest.mark.parametrize(
    ("text", "every", "written"),
    [
        ("500 steps", Every(500, "steps"), "500 steps"),
        (500, Every(500, "steps"), "500 steps"),
        ("500", Every(500, "steps"), "500 steps"),
        ("1 epoch", Every(1, "epochs"), "1 epoch"),
        ("3 epochs", Every(3, "epochs"), "3 epochs"),
        ("30s", Every(30, "seconds"), "30s"),
        ("5m", Every(300, "seconds"), "300s"),
        ("2 hours", Every(7200, "seconds"), "7200s"),
        (None, None, None),
    ],
)
def test_intervals(text, every, written):
    spec = changed(checkpoint={"every": text})
    assert spec.checkpoint.every == every
    assert spec.model_dump(mode="json")["checkpoint"]["every"] == written


def test_an_interval_in_steps():
    assert Every(3, "epochs").in_steps(12) == 36
    assert Every(5, "steps").in_steps(12) == 5
    assert Every(30, "seconds").in_steps(12) is None


def test_yaml_round_trip_keeps_everything(write):
    text = DIGITS.replace(
        "clip_norm: 1.0", "clip_norm: 1.0, betas: [0.9, 1e-8], note: '1e-3', schedule: {name: step, k: 2}"
    )
    spec = load_spec(write(text), ["monitor.metrics_port=null", "eval.every=null"])
    again = load_spec(write(spec.to_yaml(), "job.yaml"))
    assert again == spec
    assert again.to_yaml() == spec.to_yaml()
    assert again.digest() == spec.digest()
    assert again.optimizer.options == {"betas": [0.9, 1e-8], "note": "1e-3"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"workers": 3},
        {"timeout_seconds": 9.0},
        {"monitor": {"metrics_port": None}},
        {"checkpoint": {"every": "3 steps", "keep": 9}},
        {"eval": {"every": "3 steps"}},
        {"base_dir": "/elsewhere"},
        {"shards": 8},
        {"dtype": "float32"},
        {"optimizer": {"lr": 1e-1, "name": "sgd", "schedule": {"name": "constant"}}},
    ],
)
def test_the_digest_ignores_what_does_not_change_the_result(change):
    assert changed(**change).digest() == parse_spec(SMALL).digest()


def test_the_digest_is_that_of_earlier_versions():
    """A change of it makes every run that was started before refuse to resume."""
    assert parse_spec(SMALL).digest() == "7f235698d6d503c76682b4a6fe656bf29d47c565fcc3026a9c9095e9ac33df97"


def test_the_digest_sees_what_changes_the_result():
    changes = [
        {},
        {"seed": 1},
        {"model": {"name": "svm"}},
        {"model": {"name": "softmax", "bias": False}},
        {"data": {"name": "digits", "path": "x"}},
        {"loss": "hinge"},
        {"optimizer": {"name": "adam", "lr": 0.1}},
        {"optimizer": {"name": "sgd", "lr": 0.2}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": 1.0}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "schedule": {"warmup_steps": 5}}},
        {"batch": 64},
        {"shards": 4},
        {"steps": 11},
        {"steps": ..., "epochs": 10},
        {"dtype": "float64"},
        {"on_nonfinite": "skip"},
    ]
    digests = {changed(**change).digest() for change in changes}
    assert len(digests) == len(changes)
    assert all(len(digest) == 64 for digest in digests)


def test_the_users_model_counts_by_content_not_by_place(tmp_path):
    digests = []
    for folder, code in [("a", "x = 1"), ("b", "x = 1"), ("c", "x = 2")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.py").write_text(code)
        spec = parse_spec(SMALL | {"model": {"entry": f"{folder}.py"}}, base_dir=tmp_path / folder)
        digests.append(spec.digest())
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / "a" / "a.py").unlink()
    gone = parse_spec(SMALL | {"model": {"entry": "a.py"}}, base_dir=tmp_path / "a", check_files=False)
    with pytest.raises(InputError, match=r"a\.py: model\.entry cannot be read: No such file or directory$"):
        gone.digest()


def test_entries(tmp_path):
    (tmp_path / "my_model.py").touch()

    def entry(text):
        found = parse_spec(SMALL | {"model": {"entry": text}}, base_dir=tmp_path).entry()
        return found.file, found.module, found.attribute

    assert entry("my_model.py") == (tmp_path / "my_model.py", None, None)
    assert entry("my_model.py:Net") == (tmp_path / "my_model.py", None, "Net")
    assert entry(f"{tmp_path}/my_model.py") == (tmp_path / "my_model.py", None, None)
    assert entry("package.module:name") == (None, "package.module", "name")
    assert entry("package") == (None, "package", None)
    assert parse_spec(SMALL).entry() is None


def test_a_missing_model_file_is_told_before_the_run(write, tmp_path):
    path = write(DIGITS.replace("name: mlp,", "entry: gone.py,"))
    assert errors_of(path) == [f"digits.yaml: model.entry: no such file: {tmp_path}/gone.py"]
    assert errors_of(path, ["model.entry=other.py:f"]) == [
        f"--set model.entry=other.py:f: no such file: {tmp_path}/other.py"
    ]


def test_paths_start_at_the_folder_of_the_file(write, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    spec = load_spec(write(DIGITS, "sub/digits.yaml"))
    monkeypatch.chdir("/")
    assert spec.resolve("data.npz") == tmp_path / "sub" / "data.npz"
    assert spec.resolve("/abs/data.npz").as_posix() == "/abs/data.npz"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert spec.resolve("~/data.npz").as_posix() == "/home/somebody/data.npz"
    monkeypatch.chdir(tmp_path)
    assert load_spec(write(DIGITS + "base_dir: ..\n", "sub/up.yaml")).base_dir == str(tmp_path)


def test_options_are_a_copy():
    spec = parse_spec(SMALL | {"model": {"name": "mlp", "hidden": [3]}})
    spec.model.options["hidden"].append(4)
    spec.model.options["more"] = 1
    assert spec.model.options == {"hidden": [3]}


def test_json_schema_describes_every_key():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(JobSpec.model_fields)
    assert set(schema["required"]) == {"model", "data", "optimizer", "batch"}
    for section in [schema, *schema["$defs"].values()]:
        for key, field in section["properties"].items():
            described = field.get("description") or "$ref" in field
            assert described, key
    assert schema["$defs"]["OptimizerSpec"]["additionalProperties"] is True
