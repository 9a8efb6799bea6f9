"""Commands in processes of their own that can be killed, slowed down while they save, or cut off a disk."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expertise.runs import checkpoint

ROUTERS = {
    "top-p": "model.router={name='top_p', p=0.4, max_parts=3}",
    "top-k": "model.router={name='top_k', k=2%s}",
}
"""Settings that choose a router. Top-k is balanced without a loss where its router can be."""


def router_setting(name: str) -> str:
    """A setting of `ROUTERS`."""
    import dataclasses

    from expertise.mixture import TopK

    loss_free = "bias_step" in {field.name for field in dataclasses.fields(TopK.Config)}
    return ROUTERS[name].replace("%s", ", bias_step=0.001" if loss_free else "")


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
}
FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "model.json",
    "tokenizer.json",
    "manifest.json",
)


def content(run: Path) -> dict[str, bytes]:
    """All that recipe and seed determine: the newest checkpoint's files but its manifest, and the metrics."""
    found = checkpoint.latest(run)
    assert found is not None
    files = {path.name: path.read_bytes() for path in found.path.iterdir() if path.name != "manifest.json"}
    assert set(files) == set(FILES) - {"manifest.json"}
    return {**files, "step": found.path.name.encode(), "metrics": (run / "metrics.jsonl").read_bytes()}


def lines(run: Path) -> int:
    """Lines of metrics that are there."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written, or one was when the process died."""
    return any(run.glob("checkpoints/.step-*"))


def wait_until(condition: Callable[[], bool], process: Any, seconds: float = 60) -> None:
    """Until the condition holds or the process has ended."""
    end = time.monotonic() + seconds
    alive = process.is_alive if hasattr(process, "is_alive") else lambda: process.poll() is None
    while not condition() and alive():
        if time.monotonic() > end:
            pytest.fail("the process did not come so far")
        time.sleep(0.001)


def slowly(arguments: list[str], seed: int, log: str = "") -> None:
    """A command whose every step of writing to disk takes a while, so that a kill can meet each of them.

    Args:
        arguments: of the command.
        seed: of the delays.
        log: a file for what it says; empty: nowhere.
    """
    import safetensors.torch

    from expertise.cli.main import main

    dice = random.Random(seed)

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            time.sleep(dice.random() * 0.01)
            result = function(*positional, **named)
            time.sleep(dice.random() * 0.01)
            return result

        return call

    for place, name in (
        (os, "fsync"),
        (os, "replace"),
        (os, "rename"),
        (shutil, "rmtree"),
        (safetensors.torch, "save_file"),
    ):
        setattr(place, name, delayed(getattr(place, name)))
    _say_to(log)
    main(arguments)


def plainly(arguments: list[str], log: str = "") -> None:
    """A command as it is."""
    from expertise.cli.main import main

    _say_to(log)
    main(arguments)


def limited(arguments: list[str], file_size: int, log: str) -> None:
    """A command that may not write a file of more than so many bytes (`ulimit -f`)."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    plainly(arguments, log)


def with_cache(arguments: list[str], cache: str, log: str) -> None:
    """A command with a cache of its own."""
    os.environ["EXPERTISE_CACHE"] = cache
    plainly(arguments, log)


def stuck(arguments: list[str], log: str) -> None:
    """A command that hangs in its second checkpoint, as on a disk that does not answer."""
    import safetensors.torch

    save, calls = safetensors.torch.save_file, iter(range(99))

    def hang(*positional: Any, **named: Any) -> None:
        if next(calls) == 4:  # a checkpoint has three files of tensors
            time.sleep(60)
        save(*positional, **named)

    safetensors.torch.save_file = hang
    plainly(arguments, log)


def _say_to(log: str) -> None:
    handle = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(handle, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the process ends with it
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def forked() -> Iterator[Callable[..., Any]]:
    """`start(target, …)`: a process forked from one that has imported all a command needs."""
    context = multiprocessing.get_context("forkserver")
    # All that a command imports on its way, torch._dynamo by the first optimizer step.
    heavy = ["torch._dynamo", "pydantic", "typer", "tokenizers", "filelock", "tomlkit", "safetensors.torch"]
    context.set_forkserver_preload(["pytest", "expertise.cli.main", "expertise.lm.train", *heavy])
    started = []

    def start(target: Callable[..., None], *arguments: Any) -> Any:
        process = context.Process(target=target, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
        process.close()
