"""A checkpoint that is damaged is never used, whatever byte of it is wrong."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from dtrain.train.checkpoint import CheckpointStore
from tests.unit.train.test_checkpoint import (
    MANIFEST,
    META,
    OPTIMIZER,
    PARAMETERS,
    assert_state,
    filled,
    flip,
    refused,
    state,
)


class TestDamage:
    def test_every_flipped_byte_is_detected(self, tmp_path):
        store = filled(tmp_path, 1, 2)
        for name in (PARAMETERS, OPTIMIZER, MANIFEST):
            path = tmp_path / "step-00000002" / name
            for position in range(path.stat().st_size):
                for mask in (0x01, 0x20, 0xFF):
                    flip(path, position, mask)
                    refused(lambda: store.verify(path.parent), "checkpoint step-00000002: ")  # noqa: B023
                    flip(path, position, mask)
        store.verify(tmp_path / "step-00000002")

    @pytest.mark.parametrize("name", [PARAMETERS, OPTIMIZER, MANIFEST])
    def test_every_truncation_is_detected(self, tmp_path, name):
        store = filled(tmp_path, 1, 2)
        path = tmp_path / "step-00000002" / name
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            refused(lambda: store.verify(path.parent), f"checkpoint step-00000002: {name} ")
        path.write_bytes(whole + b" ")
        refused(lambda: store.verify(path.parent), f"checkpoint step-00000002: {name} ")

    def test_the_one_before_is_used_and_the_message_says_what_was_lost(self, tmp_path):
        filled(tmp_path, 300, 400, 418)
        flip(tmp_path / "step-00000418" / PARAMETERS, -1)
        checkpoint = CheckpointStore(tmp_path).latest()
        assert_state(checkpoint, 400)
        found = hashlib.sha256((tmp_path / "step-00000418" / PARAMETERS).read_bytes()).hexdigest()[:8]
        manifest = json.loads((tmp_path / "step-00000418" / MANIFEST).read_text())
        said = manifest["files"][PARAMETERS]["sha256"][:8]
        assert checkpoint.message == (
            f"checkpoint step-00000418: parameters.safetensors has sha256 {found}…, its manifest says {said}…; "
            "using step-00000400, 18 steps are run again"
        )
        assert checkpoint.lost_steps == 18

    def test_several_damaged_ones_are_all_named(self, tmp_path):
        filled(tmp_path, 1, 2, 3)
        (tmp_path / "step-00000003" / MANIFEST).unlink()
        (tmp_path / "step-00000002" / OPTIMIZER).unlink()
        checkpoint = CheckpointStore(tmp_path).latest()
        assert_state(checkpoint, 1)
        assert checkpoint.message == (
            "checkpoint step-00000003: manifest.json is missing; checkpoint step-00000002: optimizer.m.safetensors is "
            "missing; using step-00000001, 2 steps are run again"
        )

    def test_if_all_are_damaged_nothing_is_made_up(self, tmp_path):
        filled(tmp_path, 1, 2)
        for step in (1, 2):
            (tmp_path / f"step-0000000{step}" / PARAMETERS).write_bytes(b"")
        words = ("step-00000002: parameters", "step-00000001: parameters", "no valid checkpoint is left", "backup")
        refused(lambda: CheckpointStore(tmp_path).latest(), *words)

    def test_one_whose_hash_was_found_wrong_does_not_count_as_kept(self, tmp_path):
        filled(tmp_path, 1, 2, 3)
        flip(tmp_path / "step-00000003" / PARAMETERS, -1)
        store = CheckpointStore(tmp_path, keep=2)
        assert store.latest().step == 2
        store.save(4, state(4), META)
        assert store.steps() == [2, 4]
        assert store.latest().message == ""

    def test_one_whose_sizes_are_wrong_does_not_count_as_kept(self, tmp_path):
        store = filled(tmp_path, 1, 2, 3)
        (tmp_path / "step-00000003" / OPTIMIZER).write_bytes(b"")
        store.save(4, state(4), META)
        assert store.steps() == [1, 2, 4]

    def test_a_damaged_one_counts_again_when_it_was_replaced(self, tmp_path):
        filled(tmp_path, 1, 2)
        flip(tmp_path / "step-00000002" / PARAMETERS, -1)
        store = CheckpointStore(tmp_path, keep=2)
        store.latest()
        store.save(2, state(2), META)
        store.save(3, state(3), META)
        assert store.steps() == [2, 3]

    def test_a_manifest_of_another_step(self, tmp_path):
        store = filled(tmp_path, 1)
        shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000009")
        refused(lambda: store.verify(tmp_path / "step-00000009"), "manifest.json is that of step 1")

    @pytest.mark.parametrize("kind", ["file", "link", "dangling", "pipe", "directory"])
    def test_what_is_no_plain_file_is_not_opened(self, tmp_path, kind):
        store = filled(tmp_path / "c", 1, 2)
        path = tmp_path / "c" / "step-00000002" / PARAMETERS
        outside = tmp_path / "outside"
        shutil.move(path, outside)
        if kind == "file":
            shutil.rmtree(path.parent)
            path.parent.write_text("")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to(outside if kind == "link" else tmp_path / "nowhere")
        refused(lambda: store.verify(path.parent), "not a directory" if kind == "file" else "is not a plain file")
        assert_state(store.latest(), 1)

    def test_a_path_in_a_manifest_is_not_followed(self, tmp_path):
        store = filled(tmp_path / "c", 1)
        path = tmp_path / "c" / "step-00000001"
        shutil.move(path / PARAMETERS, tmp_path / PARAMETERS)
        rewrite(
            path, lambda content: content["files"].update({f"../../{PARAMETERS}": content["files"].pop(PARAMETERS)})
        )
        refused(lambda: store.verify(path), "manifest.json is not as dtrain writes it")

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c.update(step="1"),
            lambda c: c.update(files=[]),
            lambda c: c.update(meta=None),
            lambda c: c.update(parent=3),
            lambda c: c.pop("files"),
            lambda c: c["files"][PARAMETERS].pop("bytes"),
            lambda c: c["files"][PARAMETERS].update(bytes=True),
            lambda c: c["files"][PARAMETERS].update(tensors={"w": 3}),
            lambda c: c.update(extra=1),
        ],
    )
    def test_a_consistent_manifest_of_wrong_content_is_refused(self, tmp_path, change):
        store = filled(tmp_path, 1)
        rewrite(tmp_path / "step-00000001", change)
        refused(lambda: store.load(tmp_path / "step-00000001"), "manifest.json is not as dtrain writes it")

    def test_tensors_must_be_those_of_the_manifest(self, tmp_path):
        store = filled(tmp_path, 1)
        rewrite(tmp_path / "step-00000001", lambda c: c["files"][PARAMETERS]["tensors"]["w"].update(shape=[3, 2]))
        refused(lambda: store.load(tmp_path / "step-00000001"), "not hold the tensors", "they differ in 'w'")

    def test_a_changed_value_in_a_manifest_is_told_by_its_digest(self, tmp_path):
        store = filled(tmp_path, 1)
        path = tmp_path / "step-00000001" / MANIFEST
        said = json.loads(path.read_text())["digest"]
        path.write_text(path.read_text().replace("openblas", "openblaz"))
        refused(lambda: store.verify(path.parent), "manifest.json has digest ", f"…, it says {said[:8]}…")

    def test_a_file_of_another_size_is_not_read(self, tmp_path):
        store = filled(tmp_path, 1)
        path = tmp_path / "step-00000001" / PARAMETERS
        size = path.stat().st_size
        os.truncate(path, 1 << 40)
        words = f"parameters.safetensors has 1099511627776 bytes, its manifest says {size}"
        refused(lambda: store.verify(path.parent), words)

    @pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"[1]", b"{}", b'"x"', b"9" * 5000, b"\xff\xfe", b"null"])
    def test_a_manifest_that_is_something_else(self, tmp_path, data):
        store = filled(tmp_path, 1)
        (tmp_path / "step-00000001" / MANIFEST).write_bytes(data)
        refused(lambda: store.verify(tmp_path / "step-00000001"), "manifest.json cannot be read")

    def test_an_enormous_manifest_is_not_read(self, tmp_path):
        store = filled(tmp_path, 1)
        os.truncate(tmp_path / "step-00000001" / MANIFEST, 1 << 40)
        refused(lambda: store.verify(tmp_path / "step-00000001"), "more than a manifest can have")

    def test_a_newer_format_is_an_error_and_no_damage(self, tmp_path):
        store = filled(tmp_path, 1, 2)
        rewrite(tmp_path / "step-00000002", lambda content: content.update(version=2))
        refused(store.latest, "is of format dtrain-checkpoint 2, this dtrain reads", "use the dtrain that wrote it")

    def test_missing_permission_is_an_error_and_no_damage(self, tmp_path, monkeypatch):
        store = filled(tmp_path, 1, 2)
        real = open

        def guarded(path, *args, **kwargs):
            if str(path).endswith(PARAMETERS):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr("builtins.open", guarded)
        refused(store.latest, "step-00000002: parameters.safetensors cannot be read: Permission denied")


def rewrite(path: Path, change) -> None:
    """Change a manifest and make its own digest right again."""
    content = json.loads((path / MANIFEST).read_text())
    del content["digest"]
    change(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
