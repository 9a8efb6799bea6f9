"""Where tensors live, and what to say when a device is absent or too small."""

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
    """What a device lacks and how it is made up for, a line each; nothing for a CPU and for CUDA."""
    if device.type == "mps":
        return ["Metal has no grouped products: experts run one after another there"]
    return []


def limit_threads(threads: int) -> None:
    """Use so many CPU threads; 0 leaves the library's choice."""
    if threads > 0:
        torch.set_num_threads(threads)


def products(device: torch.device, bfloat16: bool) -> contextlib.AbstractContextManager[object]:
    """Where this is entered, products of matrices are computed in bfloat16, or as their operands are."""
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext()


@contextlib.contextmanager
def memory_errors(hints: Sequence[str]) -> Iterator[None]:
    """Turn running out of device memory into one line, with hints that say what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device ran out of memory", *hints) from error
