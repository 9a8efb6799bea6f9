"""One product for many parts: rows that are sorted by part, each times its own part's weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.shapes import Float, Int

_ALIGNMENT = 16
"""`torch.nn.functional.grouped_mm` wants every stride to be a multiple of so many bytes."""


def missing_columns(width: int, dtype: torch.dtype) -> int:
    """How many columns a row of this width lacks to be whole multiples of the alignment of `grouped_mm`."""
    return -width % max(1, _ALIGNMENT // dtype.itemsize)


def grouped_linear(
    rows: Float[Tensor, "rows in_features"],
    weight: Float[Tensor, "parts out_features in_features"],
    offsets: Int[Tensor, " parts"],
) -> Float[Tensor, "rows out_features"]:
    """`rows[i] @ weight[part of row i].T`, differentiable in rows and weight.

    Runs on `grouped_mm`; where that refuses (float64, widths that are not a multiple of 16 bytes, devices
    without it) a loop over the parts gives the same. Under `torch.compile` in float32, which `grouped_mm`'s
    tracing refuses, the eager kernel is called as one opaque operator. Under autocast it computes in
    autocast's dtype, as `linear` does.

    Args:
        rows: sorted by part.
        weight: stacked weights, E parts.
        offsets: where each part's rows end (int32), so `offsets[-1] == R`; equal neighbours: an empty part.

    Returns:
        One output row per input row, in the same order.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device) and rows.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        rows, weight = rows.to(dtype), weight.to(dtype)
    if torch.compiler.is_compiling() and rows.dtype == torch.float32:
        result: Tensor = _opaque(rows, weight, offsets)
        return result
    if not _fits_grouped_mm(rows, weight):
        return _loop(rows, weight, offsets)
    # The kernel's backward refuses an expanded gradient such as that of `y.sum()`: make it whole first.
    product = F.grouped_mm(_aligned(rows), weight.transpose(-2, -1), offs=offsets)
    return _WholeGradient.apply(product)  # type: ignore[no-any-return, no-untyped-call]


def _fits_grouped_mm(rows: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_mm` computes this product and its gradients."""
    if rows.dtype not in (torch.float32, torch.bfloat16, torch.float16) or rows.dtype != weight.dtype:
        return False
    if rows.device.type not in ("cpu", "cuda") or not weight.is_contiguous() or rows.shape[0] == 0:
        return False
    return all(size * rows.element_size() % _ALIGNMENT == 0 for size in weight.shape[1:])


def _aligned(rows: Tensor) -> Tensor:
    """The rows, copied unless `grouped_mm` can read them where they lie: as part of wider rows, say."""
    if torch.compiler.is_compiling():  # which cannot ask where a tensor lies
        return rows.contiguous()
    step, within = rows.stride()
    whole = all(start * rows.element_size() % _ALIGNMENT == 0 for start in (step, rows.storage_offset()))
    return rows if within == 1 and step >= rows.shape[1] and whole else rows.contiguous()


def _loop(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """The fallback: one `linear` per part, plain autograd."""
    ends = offsets.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    products = [
        F.linear(part, matrix)
        for part, matrix in zip(torch.split(rows, sizes), weight.unbind(0), strict=True)
    ]
    return torch.cat(products)


class _WholeGradient(torch.autograd.Function):
    """Identity whose gradient arrives contiguous."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()


# Schemas are spelled out: torch cannot read them from postponed annotations under a shape-checking hook.
@torch.library.custom_op(
    "expertise::grouped_linear",
    mutates_args=(),
    schema="(Tensor rows, Tensor weight, Tensor offsets) -> Tensor",
)
def _opaque(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    if _fits_grouped_mm(rows, weight):
        return F.grouped_mm(_aligned(rows), weight.transpose(-2, -1), offs=offsets)
    return _loop(rows, weight, offsets)


@torch.library.custom_op(
    "expertise::grouped_linear_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor rows, Tensor weight, Tensor offsets) -> (Tensor, Tensor)",
)
def _opaque_backward(grad: Tensor, rows: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()
    if _fits_grouped_mm(rows, weight):
        grad_rows = F.grouped_mm(grad, weight, offs=offsets)
        return grad_rows, F.grouped_mm(grad.t(), rows.contiguous(), offs=offsets)
    grad_rows = _loop(grad, weight.transpose(-2, -1), offsets)
    grad_weight = torch.zeros_like(weight)
    start = 0
    for part, end in enumerate(offsets.tolist()):
        grad_weight[part] = grad[start:end].t() @ rows[start:end]
        start = end
    return grad_rows, grad_weight


@_opaque.register_fake
def _(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@_opaque_backward.register_fake
def _(grad: Tensor, rows: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(weight)


def _save(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]


def _gradients(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_opaque_backward(grad, *ctx.saved_tensors), None  # type: ignore[attr-defined]


_opaque.register_autograd(_gradients, setup_context=_save)
