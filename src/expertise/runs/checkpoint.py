"""Checkpoints: folders that are written atomically and whose every byte is checked before use.

Schemas: `SCHEMA` numbers the layout of the files. It is raised by whoever changes a checkpoint so that code
from before would read it wrongly or not at all; new files that old code may ignore do not raise it. Code
reads its own schema only. A checkpoint of any other schema, older or newer, is refused with the version that
wrote it and stays as it is; it is not passed over for one before it, because going on from there would throw
away what the other version did. Whoever raises the number may read the old layout too, by turning it into the
new one in `Checkpoint`, in memory; then both numbers are in `_READ`.

What never changes is the manifest's own form: a JSON object with `schema`, `step`, `versions`, `files` and,
last, the SHA-256 of the rest. So every version can tell a foreign checkpoint from a damaged one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expertise import __version__
from expertise.errors import DiskError, RunError
from expertise.runs.files import atomic_folder, sha256_of, sha256_of_json
from expertise.runs.folder import MANIFEST, saved_steps
from expertise.runs.progress import say

SCHEMA = 1
"""Version number of the layout that is written."""

_READ = (SCHEMA,)


class OtherSchemaError(RunError):
    """Raised for a whole checkpoint whose layout another version of this library wrote."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files all match the manifest."""

    path: Path
    step: int
    version: str
    """Version of this library that wrote the checkpoint."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `<name>.safetensors`, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.path / f"{name}.safetensors")

    def text(self, name: str) -> str:
        """A text file of the checkpoint."""
        return (self.path / name).read_text("utf-8")


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str],
    *,
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write `checkpoints/step-N` and drop old ones.

    Args:
        run: the run's folder.
        step: steps done so far.
        tensors: file name (without ending) → named tensors.
        texts: file name → content.
        keep: how many of the latest checkpoints stay.
        keep_every: also keep checkpoints whose step is a multiple of this; 0: none.

    Raises:
        DiskError: no room, or no right to write; earlier checkpoints stay as they are.
    """
    folder = run / "checkpoints" / f"step-{step}"
    write(folder, step, tensors, texts)
    kept = saved_steps(run)
    for old in kept[:-keep] if keep else []:
        if not (keep_every and old % keep_every == 0):
            # Renamed first: a checkpoint that is half deleted when the process is killed must not look whole.
            path = run / "checkpoints" / f"step-{old}"
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f".{path.name}.old"))
    for left_over in folder.parent.glob(".step-*"):  # of a process that was killed, too; we hold the run
        shutil.rmtree(left_over, ignore_errors=True)
    return folder


def write(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]
) -> None:
    """Write a folder that `open_checkpoint` reads, as `save` does; one that stood there is replaced.

    Raises:
        DiskError: no room, or no right to write; what stood there stays as it is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    try:
        with atomic_folder(folder) as aside:
            for name, group in tensors.items():
                plain = {key: t.detach().cpu().contiguous() for key, t in group.items()}
                save_file(plain, aside / f"{name}.safetensors")
            for name, text in texts.items():
                (aside / name).write_text(text, "utf-8")
            (aside / MANIFEST).write_text(_manifest(aside, step), "utf-8")
    except (DiskError, SafetensorError) as error:
        # safetensors wraps the disk's error in its own; the error number is only in the text.
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            found = re.search(r"\(os error (\d+)\)", str(error))
            if isinstance(error, DiskError) or not found:
                raise
            reason = os.strerror(int(found[1]))
            raise DiskError(f"cannot write {folder}: {reason}", "earlier checkpoints are whole") from error
        free = shutil.disk_usage(next(path for path in folder.parents if path.is_dir())).free
        raise DiskError(
            f"cannot save {folder}: it needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free",
            "free some space and run the same command again: it goes on from the last checkpoint",
        ) from error


def latest(run: Path, *, set_aside: bool = False) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None if there never was one.

    A damaged one is named and passed over.

    Args:
        run: the run's folder.
        set_aside: also rename damaged ones to `step-N.damaged`; for callers that write to this run.

    Raises:
        RunError: there are checkpoints and none is whole, or the newest whole one has another schema.
    """
    steps = saved_steps(run)[::-1]
    for step in steps:
        path = run / "checkpoints" / f"step-{step}"
        try:
            return open_checkpoint(path)
        except OtherSchemaError:
            raise
        except RunError as error:
            say(f"{error.message}; trying the one before")
            if set_aside:
                path.rename(path.with_name(_free_name(path)))
    if steps or any((run / "checkpoints").glob("step-*.damaged*")):
        raise RunError(
            f"no checkpoint of {run} is whole",
            "start afresh in another folder with --out, or delete this one",
        )
    return None


def any_saved(run: Path) -> bool:
    """True if a run has ever saved a checkpoint, whole or damaged."""
    return any((run / "checkpoints").glob("step-*"))


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint by its folder, after a check of every file against the manifest.

    Raises:
        RunError: it is damaged, or of another schema; the message names the file.
    """
    manifest = _read_manifest(path)
    version = manifest["versions"].get("expertise", "?")
    if manifest["schema"] not in _READ:
        raise OtherSchemaError(
            f"{path} has schema {manifest['schema']}, this version reads {SCHEMA}; "
            f"it was written by expertise {version}",
            f"go on with expertise {version}, or start afresh with another --out",
        )
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            if not file.is_file():
                raise RunError(f"damaged checkpoint {path}: {name} is missing")
            whole = file.stat().st_size == entry["size"] and sha256_of(file) == entry["sha256"]
        except OSError as error:  # a disk that fails while it is read
            reason = error.strerror or error
            raise RunError(f"damaged checkpoint {path}: {name} cannot be read: {reason}") from error
        if not whole:
            raise RunError(f"damaged checkpoint {path}: {name} is not what was written")
    return Checkpoint(path, manifest["step"], version)


def is_checkpoint(path: Path) -> bool:
    """True if a folder holds a checkpoint's manifest."""
    return (path / MANIFEST).is_file()


def random_states() -> dict[str, Tensor]:
    """The state of every random generator that training may use, as tensors."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Restore the states that `random_states` returned; devices that this machine lacks are left out."""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: `<parameter>::<quantity>`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}::{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` returned; the parameter groups come from the recipe."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("::")
        parameter = parameters[name]
        # A step count stays where the optimizer made it; moments live beside their parameter.
        moment = value.to(parameter.device) if value.ndim else value
        fused = optimizer.defaults.get("fused")
        optimizer.state[parameter][quantity] = moment.to(parameter.device) if fused else moment


def _manifest(folder: Path, step: int) -> str:
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "step": step,
        "versions": {
            "expertise": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "files": {
            file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)}
            for file in sorted(folder.iterdir())
        },
    }
    return json.dumps({**content, "sha256": sha256_of_json(content)}, indent=1) + "\n"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        whole = manifest["sha256"] == sha256_of_json(content) and all(
            isinstance(manifest[key], kind)
            for key, kind in (("files", dict), ("versions", dict), ("step", int), ("schema", int))
        )
    except FileNotFoundError:
        raise RunError(f"damaged checkpoint {path}: {MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole, manifest = False, {}
    if not whole:
        raise RunError(f"damaged checkpoint {path}: {MANIFEST} is not what was written")
    return manifest  # type: ignore[no-any-return]


def _free_name(path: Path) -> str:
    number = 0
    while (path.parent / (name := f"{path.name}.damaged{number or ''}")).exists():
        number += 1
    return name
