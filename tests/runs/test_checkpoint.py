"""Checkpoints: any damage is noticed and named, and the one before is used."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import expertise
from expertise.errors import DiskError, RunError
from expertise.runs import checkpoint, files

Save = Callable[..., Path]


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flip": flip,
    "truncate": truncate,
    "remove": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n{}"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("name", ["model.safetensors", "random.safetensors", "model.json", "manifest.json"])
def test_damage_is_named_and_the_one_before_is_used(
    save_small: Save, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    run = save_small(2, 4, 6)
    DAMAGE[damage](run / "checkpoints" / "step-6" / name)
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 4
    assert torch.equal(found.tensors("model")["w"], torch.full((3, 2), 4.0))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "step-6" in said[0]
    assert name in said[0]
    assert steps(run) == ["step-2", "step-4", "step-6"], "who only reads changes nothing"
    checkpoint.latest(run, set_aside=True)
    assert steps(run) == ["step-2", "step-4", "step-6.damaged"]


def test_every_bit_of_a_manifest_counts(save_small: Save) -> None:
    path = save_small(1) / "checkpoints" / "step-1"
    whole = (path / "manifest.json").read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        (path / "manifest.json").write_bytes(damaged)
        with pytest.raises(RunError, match=r"manifest\.json is not what was written"):
            checkpoint.open_checkpoint(path)


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"sha256": 3}', "{", "\xff", '{"files": []}'])
def test_a_manifest_of_another_form_is_damage(save_small: Save, content: str) -> None:
    path = save_small(1) / "checkpoints" / "step-1"
    (path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"^damaged checkpoint .*manifest\.json"):
        checkpoint.open_checkpoint(path)


def test_when_none_is_whole_the_run_refuses_now_and_later(save_small: Save) -> None:
    run = save_small(2, 4)
    for step in (2, 4):
        truncate(run / "checkpoints" / f"step-{step}" / "model.json")
    for _ in range(2):  # the second time they have been set aside
        with pytest.raises(RunError, match=r"^no checkpoint of .* is whole$"):
            checkpoint.latest(run, set_aside=True)


def test_a_name_that_is_taken_is_not_overwritten_by_setting_aside(save_small: Save) -> None:
    run = save_small(2)
    for _ in range(3):
        save_small(4)
        flip(run / "checkpoints" / "step-4" / "model.json")
        checkpoint.latest(run, set_aside=True)
    assert steps(run) == ["step-2", "step-4.damaged", "step-4.damaged1", "step-4.damaged2"]


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None


def other_schema(run: Path, step: int, schema: int) -> None:
    path = run / "checkpoints" / f"step-{step}" / "manifest.json"
    content = json.loads(path.read_text())
    content |= {"schema": schema, "versions": {"expertise": "9.9.9"}}
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": files.sha256_of_json(content)}))


@pytest.mark.parametrize("schema", [checkpoint.SCHEMA + 1, 0])
def test_another_schema_is_refused_with_the_version_that_wrote_it(save_small: Save, schema: int) -> None:
    run = save_small(2, 4)
    other_schema(run, 4, schema)
    message = rf"step-4 has schema {schema}, this version reads .* expertise 9\.9\.9$"
    with pytest.raises(RunError, match=message) as caught:
        checkpoint.latest(run, set_aside=True)
    assert caught.value.hints[0].startswith("go on with expertise 9.9.9")
    assert steps(run) == ["step-2", "step-4"], "it is not damaged: another version can read it"


def test_another_schema_is_refused_beside_readable_ones_unless_it_is_damaged(save_small: Save) -> None:
    """A newer version went on from step 2; only where its work is lost anyway is the older one used."""
    run = save_small(2, 4)
    other_schema(run, 4, checkpoint.SCHEMA + 1)
    for step in (3, 4):
        with pytest.raises(checkpoint.OtherSchemaError):
            checkpoint.open_checkpoint(run / "checkpoints" / "step-4")
        with pytest.raises(checkpoint.OtherSchemaError):
            checkpoint.latest(save_small(step, run=run) if step < 4 else run)
    flip(run / "checkpoints" / "step-4" / "manifest.json")
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 3


def test_an_older_schema_under_readable_ones_is_no_trouble(save_small: Save) -> None:
    run = save_small(2, 4)
    other_schema(run, 2, 0)
    found = checkpoint.latest(run)
    assert found is not None
    assert (found.step, found.version) == (4, expertise.__version__)


def test_a_run_whose_path_says_schema_goes_on_like_any_other(save_small: Save, tmp_path: Path) -> None:
    run = save_small(2, 4, run=tmp_path / "schema-study")
    truncate(run / "checkpoints" / "step-4" / "model.json")
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 2


def test_the_last_ones_and_every_kth_stay(save_small: Save) -> None:
    run = save_small(*range(1, 8), keep=2, keep_every=3)
    assert steps(run) == ["step-3", "step-6", "step-7"]
    assert steps(save_small(8, keep=1, run=run)) == ["step-8"]


def test_saving_a_step_again_replaces_it(save_small: Save) -> None:
    run = save_small(2)
    checkpoint.save(run, 2, {"model": {"w": torch.ones(1)}}, {}, keep=1)
    found = checkpoint.latest(run)
    assert found is not None
    assert torch.equal(found.tensors("model")["w"], torch.ones(1))
    assert sorted(p.name for p in found.path.iterdir()) == ["manifest.json", "model.safetensors"]
    assert steps(run) == ["step-2"]


def test_left_overs_of_a_kill_are_no_checkpoints(save_small: Save) -> None:
    run = save_small(2)
    shutil.copytree(run / "checkpoints" / "step-2", run / "checkpoints" / ".step-4.0123abcd.part")
    (run / "checkpoints" / "step-x").mkdir()
    (run / "checkpoints" / "step-9").write_text("a file")
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 2


def test_saving_clears_what_a_kill_left_over(save_small: Save) -> None:
    run = save_small(2)
    (run / "checkpoints" / ".step-4.0123abcd.part").mkdir()
    save_small(6)
    assert steps(run) == ["step-2", "step-6"]


def test_a_kill_while_an_old_one_is_deleted_leaves_no_damaged_one(
    save_small: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_small(2, 4)
    with monkeypatch.context() as patch:

        def die(path: Path, **_: object) -> None:
            if not path.name.endswith(".part"):
                (path / "manifest.json").unlink()
                raise KeyboardInterrupt

        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            save_small(6, keep=1)
    assert [name for name in steps(run) if not name.startswith(".")] == ["step-6"]
    (run / "checkpoints" / "step-6" / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"no checkpoint of .* is whole"):
        checkpoint.latest(run)
    assert capsys.readouterr().err.count("damaged") == 1


def test_a_file_that_the_disk_cannot_read_is_damage(
    save_small: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_small(2, 4)
    sha256_of = checkpoint.sha256_of

    def broken(path: Path) -> str:
        if path.parent.name == "step-4":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sha256_of(path)

    monkeypatch.setattr(checkpoint, "sha256_of", broken)
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 2
    assert "cannot be read: Input/output error" in capsys.readouterr().err


def test_other_trouble_of_the_disk_while_saving_is_one_line(
    save_small: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def too_large(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    run = save_small(2)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", too_large)
        with pytest.raises(DiskError, match=r"^cannot write .*step-4: File too large$"):
            checkpoint.save(run, 4, {"model": {"w": torch.zeros(3)}}, {}, keep=1)
        patch.setattr("safetensors.torch.save_file", lambda *_: (_ for _ in ()).throw(SafetensorError("bug")))
        with pytest.raises(SafetensorError, match="bug"):
            checkpoint.save(run, 4, {"model": {"w": torch.zeros(3)}}, {}, keep=1)
    assert steps(run) == ["step-2"]


def out_of_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def safetensors_out_of_space(*_: object, **__: object) -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("target", "replacement"),
    [
        ("safetensors.torch.save_file", safetensors_out_of_space),
        ("os.fsync", out_of_space),
        ("pathlib.Path.write_text", out_of_space),
    ],
)
def test_a_full_disk_leaves_the_last_one_valid(
    save_small: Save, monkeypatch: pytest.MonkeyPatch, target: str, replacement: Callable[..., None]
) -> None:
    run = save_small(2)
    with monkeypatch.context() as patch:
        patch.setattr(target, replacement)
        patch.setattr(
            shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9_000_000, 8_000_000, 1_000_000)
        )
        with pytest.raises(DiskError, match=r"step-4: it needs 4\.0 MB and 1\.0 MB are free$") as caught:
            checkpoint.save(run, 4, {"model": {"w": torch.zeros(1_000_000)}}, {"model.json": ""}, keep=1)
        assert len(caught.value.hints) == 1
        assert "\n" not in caught.value.message
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 2
    assert steps(run) == ["step-2"]


def test_a_full_tmpfs(save_small: Save, tmp_path: Path, small_tmpfs: Path) -> None:
    run = save_small(2, run=small_tmpfs / "run")
    with pytest.raises(DiskError, match=r"it needs 4\.0 MB and [01]\.\d MB are free$"):
        checkpoint.save(run, 4, {"model": {"w": torch.zeros(1_000_000)}}, {}, keep=1)
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step == 2
    assert steps(run) == ["step-2"]
    with pytest.raises(DiskError, match="No space left"):
        files.write_atomic(run / "big", b"x" * 2_000_000)
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints"]


def test_a_forbidden_disk_is_not_called_full(save_small: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_small(2)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(DiskError, match="Read-only file system") as caught:
        checkpoint.save(run, 4, {"model": {"w": torch.zeros(3)}}, {}, keep=1)
    assert not any("free some space" in hint for hint in caught.value.hints)


def test_optimizer_and_random_states_come_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    for fused in (True, False):
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        tensors = {
            key: value.clone() for key, value in checkpoint.optimizer_tensors(model, optimizer).items()
        }
        assert set(tensors) == {
            f"{p}::{q}" for p in ("weight", "bias") for q in ("step", "exp_avg", "exp_avg_sq")
        }
        fresh = torch.optim.AdamW(model.parameters(), fused=fused)
        checkpoint.restore_optimizer(model, fresh, tensors)
        again = checkpoint.optimizer_tensors(model, fresh)
        assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in tensors.items()}
    states = checkpoint.random_states()
    first = torch.rand(3)
    checkpoint.restore_random_states(states)
    assert torch.equal(torch.rand(3), first)
    checkpoint.restore_random_states({**states, "cuda:99": states["cpu"]})


def test_the_state_of_every_gpu_is_kept_and_those_that_are_gone_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [torch.full((4,), number, dtype=torch.uint8) for number in range(3)]
    restored: dict[int, list[int]] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: restored.update({device: state.tolist()})
    )
    found = checkpoint.random_states()
    assert list(found) == ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    checkpoint.restore_random_states(found)
    assert restored == {0: [0] * 4, 1: [1] * 4}


def test_whether_anything_was_ever_saved(save_small: Save, tmp_path: Path) -> None:
    assert not checkpoint.any_saved(tmp_path)
    run = save_small(2)
    assert checkpoint.any_saved(run)
    (run / "checkpoints/step-2").rename(run / "checkpoints/step-2.damaged")
    assert checkpoint.any_saved(run), "a damaged one counts"


def test_what_looks_like_a_checkpoint(save_small: Save, tmp_path: Path) -> None:
    run = save_small(2)
    assert checkpoint.is_checkpoint(run / "checkpoints/step-2")
    assert not checkpoint.is_checkpoint(run)
    (tmp_path / checkpoint.MANIFEST).mkdir()
    assert not checkpoint.is_checkpoint(tmp_path)
