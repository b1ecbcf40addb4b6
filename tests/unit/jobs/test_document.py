"""Text to plain values and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.errors import InputError
from dtrain.jobs.document import apply_overrides, dump_yaml, parse_toml, parse_yaml, read_document, show, to_plain

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
TRICKY_TEXT = st.sampled_from(
    ["1e-3", "yes", "010", "null", "~", "1:30", "2026-11-23", "<<", "=", "", " x", "a: b", "#"]
)
KEYS = st.text(min_size=1, max_size=5) | TRICKY_TEXT
VALUES = st.recursive(
    SCALARS | TRICKY_TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_written_reads_back_equal_in_value_and_type(value):
    back = parse_yaml(dump_yaml(value), "x")
    assert repr(back) == repr(value)  # repr tells 1 from 1.0 and from True


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1E+5", -100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_024", 1024),
        ("010", 10),
        ("0x1f", 31),
        ("-0b11", -3),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("1:30", "1:30"),
        ("2026-11-23", "2026-11-23"),
        ("'1e-3'", "1e-3"),
        ("30s", "30s"),
        ("e5", "e5"),
    ],
)
def test_scalars(text, value):
    result = parse_yaml(text, "x")
    assert (type(result), result) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 3", "f.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: 1\nb: {c: 1, c: 2}\n", "f.yaml:2: not valid YAML: the key c is given twice"),
        ("a: 1\n3: 2\n", "f.yaml:2: not valid YAML: a key must be text; quote it"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not valid YAML: but found another document"),
        ("a: !!python/name:os.system x\nb: 1", None),
        ("\tb: 1\n", None),
        ("a: \0", None),
        ("a: &x [*x]", "f.yaml: a[0]: contains itself; write the value out"),
        ("a: {b: .inf}", "f.yaml: a.b: expected a finite number, got inf"),
    ],
)
def test_broken_yaml_is_one_line_that_names_file_and_place(text, message):
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "f.yaml")
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("f.yaml")
    assert message is None or said == message


def test_broken_toml_names_the_line():
    with pytest.raises(InputError, match=r"^f.toml:2: not valid TOML: Expected '='.*key.value pair$") as caught:
        parse_toml('a = 1\nb\nc = "x"\n', "f.toml")
    assert "\n" not in str(caught.value)


def test_a_date_is_refused_with_its_place():
    with pytest.raises(
        InputError, match=r"^f.toml: a.when: expected text, a number, .* got datetime.date\(2026, 11, 23\)$"
    ):
        parse_toml("[a]\nwhen = 2026-11-23\n", "f.toml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"", "empty; a job needs at least"),
        ("a.toml", b"# nothing\n", "empty; a job needs at least"),
        ("a.yaml", b"a: \xff\n", "not UTF-8 text: byte 0xff at 3"),
        ("a.ini", b"", "expected a file that ends in .yaml, .yml, .json, .toml"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_document(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(InputError, match=r"no\.yaml: no such file$"):
        read_document(tmp_path / "no.yaml")
    (tmp_path / "dir.yaml").mkdir()
    with pytest.raises(InputError, match=r"dir\.yaml: cannot be read: Is a directory$"):
        read_document(tmp_path / "dir.yaml")


def test_json_and_toml_read_like_yaml(tmp_path):
    expected = {"a": {"b": [1, 2.5, "x", True]}}
    for name, text in [
        ("a.json", '{"a": {"b": [1, 2.5, "x", true]}}'),
        ("a.toml", '[a]\nb = [1, 2.5, "x", true]\n'),
        ("a.yml", "a:\n  b: [1, 2.5, x, yes]\n"),
    ]:
        (tmp_path / name).write_text(text)
        assert read_document(tmp_path / name) == expected


def test_to_plain_takes_tuples_and_numpy_scalars_and_copies():
    import numpy as np

    inner = [1]
    plain = to_plain({"a": (np.int64(3), np.float32(0.5)), "b": inner, "c": inner}, "x")
    assert plain == {"a": [3, 0.5], "b": [1], "c": [1]}
    assert [type(item) for item in plain["a"]] == [int, float]
    assert plain["b"] is not inner


def test_to_plain_names_the_place():
    with pytest.raises(InputError, match=r"^job: a\[1\]\.b: expected text, .* got \{1\}$"):
        to_plain({"a": [0, {"b": {1}}]}, "job")


def test_overrides_make_mappings_and_the_last_one_wins():
    document = {"a": {"x": 1}, "n": None}
    origins = apply_overrides(document, ["a.x=1e-3", "b.c=[64, 32]", "n.k=v=w", "a.x=2", "t="])
    assert document == {"a": {"x": 2}, "b": {"c": [64, 32]}, "n": {"k": "v=w"}, "t": None}
    assert origins["a.x"] == "a.x=2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "--set lr: expected KEY=VALUE, for example --set optimizer.lr=0.01"),
        ("=3", "--set =3: expected KEY=VALUE, for example --set optimizer.lr=0.01"),
        ("a..b=3", "--set a..b=3: expected KEY=VALUE, for example --set optimizer.lr=0.01"),
        ("a.b.c=3", "--set a.b.c=3: a.b is 1, not a mapping; set it whole"),
        ("a=[1", "--set a=[1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_wrong_overrides(override, message):
    with pytest.raises(InputError) as caught:
        apply_overrides({"a": {"b": 1}}, [override])
    assert str(caught.value) == message


def test_show_is_short():
    assert show("x") == '"x"'
    assert show(None) == "null"
    assert len(show(list(range(1000)))) == 60
