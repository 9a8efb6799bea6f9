"""Devices: choice by name, autocast, and hints for a device that is absent or too small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import get_args

import torch

from expertise.errors import DeviceError, nearest
from expertise.runs.config import DeviceName

_OTHERS = "choose the device 'auto' or 'cpu': with --device, or with train.device in a recipe"


def resolve(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where present, else the CPU.

    Raises:
        DeviceError: the name is none of these, or the device is not on this machine.
    """
    if name not in get_args(DeviceName):
        raise DeviceError(f"no device {name!r}", nearest(name, get_args(DeviceName)))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device on this machine", _OTHERS)
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no Metal device (mps) on this machine", _OTHERS)
    return torch.device(name)


def shortfalls(device: torch.device) -> list[str]:
    """Features that a device lacks and their substitutes, one line each; empty for CPU and CUDA."""
    if device.type == "mps":
        return ["Metal has no grouped products: experts run one after another there"]
    return []


def limit_threads(threads: int) -> None:
    """Set the number of CPU threads; 0 keeps PyTorch's choice."""
    if threads > 0:
        torch.set_num_threads(threads)


def products(device: torch.device, bfloat16: bool) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16 if asked, else a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext()


@contextlib.contextmanager
def memory_errors(hints: Sequence[str]) -> Iterator[None]:
    """Turn an out-of-memory error of the device into one line with hints."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device ran out of memory", *hints) from error
