"""`grouped_linear` equals one product per row, by kernel, fallback and opaque operator."""

from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.mixture import grouped_linear as module
from expertise.mixture.grouped_linear import grouped_linear

SIZES = {
    "ordinary": [3, 5, 2, 1],
    "empty ends": [0, 4, 4, 0],
    "empty middle": [2, 0, 0, 3],
    "one part": [7],
    "all on the last": [0, 0, 9],
    "one row": [0, 1, 0],
    "no row": [0, 0, 0],
}
WIDTHS = [(8, 16), (16, 8), (53, 10), (8, 5), (3, 8), (1, 1)]
"""Multiples of 16 bytes, and not: input, output, both."""

sizes_cases = pytest.mark.parametrize("sizes", list(SIZES.values()), ids=list(SIZES))
width_cases = pytest.mark.parametrize("widths", WIDTHS, ids=str)


def _inputs(
    sizes: list[int], widths: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(sizes) + sum(widths))
    rows = torch.randn(sum(sizes), widths[0], generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(len(sizes), widths[1], widths[0], generator=generator).to(dtype).requires_grad_()
    return rows, weight, torch.tensor(sizes).cumsum(0).to(torch.int32)


def _by_row(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    parts = [sum(i >= end for end in offsets.tolist()) for i in range(rows.shape[0])]
    products = [weight[part] @ row for part, row in zip(parts, rows, strict=True)]
    return torch.stack(products) if products else rows.new_zeros(0, weight.shape[1]) + 0 * rows.sum()


def _assert_same(ours: Tensor, theirs: Tensor, inputs: list[Tensor], upstream: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad(y, inputs, upstream, allow_unused=True, materialize_grads=True)
        for y in (ours, theirs)
    ]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@sizes_cases
@width_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_loop_over_rows(sizes: list[int], widths: tuple[int, int], dtype: torch.dtype) -> None:
    rows, weight, offsets = _inputs(sizes, widths, dtype)
    ours = grouped_linear(rows, weight, offsets)
    assert ours.dtype == dtype
    upstream = torch.randn(ours.shape).to(dtype)
    _assert_same(ours, _by_row(rows, weight, offsets), [rows, weight], upstream)


@sizes_cases
@width_cases
def test_opaque_operator_equals_a_loop_over_rows(sizes: list[int], widths: tuple[int, int]) -> None:
    """What torch.compile calls in float32, called here without it; its gradient is written by hand."""
    rows, weight, offsets = _inputs(sizes, widths)
    ours = module._opaque(rows, weight, offsets)
    _assert_same(ours, _by_row(rows, weight, offsets), [rows, weight], torch.randn(ours.shape))


@sizes_cases
@width_cases
def test_opaque_operators_keep_the_promises_of_their_fakes(sizes: list[int], widths: tuple[int, int]) -> None:
    """Shapes, strides, dtypes and registrations, by torch's own check."""
    rows, weight, offsets = _inputs(sizes, widths)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(module._opaque, (rows, weight, offsets), test_utils=checks)
    grad = torch.randn(sum(sizes), widths[1])
    plain = (grad, rows.detach(), weight.detach(), offsets)
    torch.library.opcheck(module._opaque_backward, plain, test_utils=checks[:2])


@width_cases
def test_bfloat16(widths: tuple[int, int]) -> None:
    rows, weight, offsets = _inputs([3, 0, 5], widths, torch.bfloat16)
    ours = grouped_linear(rows, weight, offsets)
    assert ours.dtype == torch.bfloat16
    expected = _by_row(rows.double(), weight.double(), offsets)
    torch.testing.assert_close(ours.double(), expected, rtol=0.02, atol=0.02)


@width_cases
def test_autocast_computes_in_its_dtype(widths: tuple[int, int]) -> None:
    rows, weight, offsets = _inputs([3, 0, 5], widths)
    with torch.autocast("cpu", torch.bfloat16):
        ours = grouped_linear(rows, weight, offsets)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), _by_row(rows, weight, offsets), rtol=0.05, atol=0.05)
    gradients = torch.autograd.grad(ours.sum(), [rows, weight])
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]


def test_autocast_leaves_float64_as_linear_does() -> None:
    rows, weight, offsets = _inputs([3, 0, 5], (8, 16), torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        ours = grouped_linear(rows, weight, offsets)
        assert torch.nn.functional.linear(rows, weight[0]).dtype == torch.float64
    assert ours.dtype == torch.float64


@width_cases
@pytest.mark.parametrize("which", ["rows", "weight", "both"])
def test_non_contiguous(widths: tuple[int, int], which: str) -> None:
    rows, weight, offsets = _inputs([2, 0, 6], widths)
    strided_rows = rows.detach().repeat_interleave(2, dim=1)[:, ::2].requires_grad_()
    transposed = weight.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    inputs = [
        strided_rows if which in ("rows", "both") else rows,
        transposed if which in ("weight", "both") else weight,
    ]
    ours = grouped_linear(inputs[0], inputs[1], offsets)
    expected = _by_row(inputs[0], inputs[1], offsets)
    _assert_same(ours, expected, inputs, torch.randn(ours.shape))


@pytest.mark.parametrize("start", [0, 4, 1])
@pytest.mark.parametrize("wider", [4, 3])
def test_rows_that_are_part_of_wider_ones(start: int, wider: int) -> None:
    """Read where they lie if their strides are whole, else copied; the same either way."""
    rows, weight, offsets = _inputs([2, 0, 6], (8, 16))
    wide = torch.nn.functional.pad(rows.detach(), (start, wider), value=7.0)
    part = wide[:, start : start + 8].requires_grad_()
    copied = module._aligned(part).data_ptr() != part.data_ptr()
    assert copied == (start == 1 or (start + wider) % 4 != 0)
    ours = grouped_linear(part, weight, offsets)
    _assert_same(ours, _by_row(part, weight, offsets), [part, weight], torch.randn(ours.shape))


@width_cases
@pytest.mark.parametrize("layout", ["expanded", "transposed"])
def test_upstream_gradients_of_any_layout(widths: tuple[int, int], layout: str) -> None:
    rows, weight, offsets = _inputs([4, 0, 3], widths)
    shape = (7, widths[1])
    upstream = torch.ones(()).expand(shape) if layout == "expanded" else torch.randn(shape[::-1]).T
    ours = grouped_linear(rows, weight, offsets)
    _assert_same(ours, _by_row(rows, weight, offsets), [rows, weight], upstream)


@sizes_cases
def test_gradcheck(sizes: list[int]) -> None:
    rows, weight, offsets = _inputs(sizes, (3, 2), torch.float64)
    assert torch.autograd.gradcheck(lambda r, w: grouped_linear(r, w, offsets), (rows, weight))


def test_a_frozen_weight_needs_no_gradient() -> None:
    rows, weight, offsets = _inputs([3, 5], (8, 8))
    frozen = weight.detach()
    (gradient,) = torch.autograd.grad(grouped_linear(rows, frozen, offsets).sum(), rows)
    (expected,) = torch.autograd.grad(_by_row(rows, frozen, offsets).sum(), rows)
    torch.testing.assert_close(gradient, expected)


# --- which way it is computed -----------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called, in order: the kernel, the opaque operator, the loop."""
    seen: list[str] = []

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            seen.append(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, noted)

    note(torch.nn.functional, "grouped_mm")
    note(module, "_opaque")
    note(module, "_loop")
    return seen


def _strided(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(
    ("widths", "dtype", "fits"),
    [
        ((8, 16), torch.float32, True),
        ((4, 4), torch.float32, True),
        ((8, 16), torch.bfloat16, True),
        ((8, 8), torch.float16, True),
        ((4, 8), torch.bfloat16, False),
        ((8, 4), torch.bfloat16, False),
        ((8, 6), torch.float32, False),
        ((6, 8), torch.float32, False),
        ((1, 4), torch.float32, False),
        ((8, 16), torch.float64, False),
    ],
    ids=str,
)
def test_the_kernel_computes_what_it_can(
    widths: tuple[int, int], dtype: torch.dtype, fits: bool, calls: list[str]
) -> None:
    rows, weight, offsets = _inputs([3, 0, 5], widths, dtype)
    ours = grouped_linear(rows, weight, offsets)
    assert calls == ["grouped_mm" if fits else "_loop"]
    expected = _by_row(rows.double(), weight.double(), offsets)
    torch.testing.assert_close(ours.double(), expected, rtol=0.02, atol=0.02)


def test_no_row_and_a_weight_of_other_strides_go_by_the_loop(calls: list[str]) -> None:
    rows, weight, offsets = _inputs([0, 0], (8, 16))
    assert grouped_linear(rows, weight, offsets).shape == (0, 16)
    assert calls == ["_loop"]
    rows, weight, offsets = _inputs([1, 0], (8, 16))
    grouped_linear(rows, _strided(weight), offsets)
    assert calls == ["_loop", "_loop"]
    grouped_linear(rows, weight, offsets)
    assert calls == ["_loop", "_loop", "grouped_mm"], "one row is enough"


def test_rows_and_weight_of_two_dtypes_or_of_no_device_never_reach_the_kernel() -> None:
    rows, weight, _ = _inputs([3, 5], (8, 16))
    assert module._fits_grouped_mm(rows, weight)
    assert not module._fits_grouped_mm(rows, weight.bfloat16())
    assert not module._fits_grouped_mm(rows.bfloat16(), weight)
    assert not module._fits_grouped_mm(rows.to("meta"), weight.to("meta"))


def test_the_gradient_of_the_opaque_operator_is_by_the_kernel_where_that_fits(calls: list[str]) -> None:
    for widths, ways in (((8, 16), ["grouped_mm"] * 2), ((8, 6), ["_loop"])):
        rows, weight, offsets = _inputs([3, 0, 5], widths)
        calls.clear()
        module._opaque_backward(torch.randn(8, widths[1]), rows.detach(), weight.detach(), offsets)
        assert calls == ways


@pytest.mark.parametrize(
    ("dtype", "ways"),
    [(torch.float32, "_opaque"), (torch.bfloat16, "grouped_mm"), (torch.float64, "_loop")],
    ids=str,
)
def test_while_compiling_only_float32_is_opaque(
    dtype: torch.dtype, ways: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weight, offsets = _inputs([3, 0, 5], (8, 16), dtype)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ours = grouped_linear(rows, weight, offsets)
    assert calls[0] == ways
    assert ours.dtype == dtype


def test_while_compiling_nothing_asks_where_rows_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fullgraph` would stop there: strides that are no multiple are copied without a look."""
    part = torch.randn(6, 12)[:, 1:9]
    aligned = torch.randn(6, 8)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(Tensor, "storage_offset", lambda _: pytest.fail("it was asked"))
    assert module._aligned(part).is_contiguous()
    assert module._aligned(aligned) is aligned


@pytest.mark.parametrize(
    "rows",
    [torch.randn(1, 8).expand(6, 8), torch.randn(64).as_strided((6, 8), (4, 1)), torch.randn(8, 6).T],
    ids=["one row for all", "overlapping", "transposed"],
)
def test_rows_that_share_memory_are_copied(rows: Tensor) -> None:
    copied = module._aligned(rows)
    assert copied.is_contiguous()
    assert torch.equal(copied, rows)
    _, weight, offsets = _inputs([2, 0, 4], (8, 16))
    torch.testing.assert_close(grouped_linear(rows, weight, offsets), _by_row(rows, weight, offsets))


@pytest.mark.parametrize(
    ("width", "start", "copied"), [(16, 8, False), (12, 0, True), (16, 4, True), (24, 8, False)]
)
def test_strides_count_in_bytes_not_in_numbers(width: int, start: int, copied: bool) -> None:
    """Four numbers are 16 bytes in float32 and 8 in bfloat16."""
    part = torch.randn(6, width).bfloat16()[:, start : start + 8]
    assert (module._aligned(part) is not part) == copied
    _, weight, offsets = _inputs([2, 0, 4], (8, 16), torch.bfloat16)
    torch.testing.assert_close(
        grouped_linear(part, weight, offsets), _by_row(part, weight, offsets), rtol=0.05, atol=0.05
    )


def test_whole_rows_are_read_where_they_lie() -> None:
    rows = torch.randn(6, 8)
    assert module._aligned(rows) is rows


@pytest.mark.parametrize(
    ("width", "dtype", "missing"),
    [
        (1, torch.float32, 3),
        (4, torch.float32, 0),
        (5, torch.float32, 3),
        (9, torch.bfloat16, 7),
        (16, torch.bfloat16, 0),
        (3, torch.float64, 1),
        (3, torch.complex128, 0),
    ],
    ids=str,
)
def test_columns_that_a_row_lacks(width: int, dtype: torch.dtype, missing: int) -> None:
    assert module.missing_columns(width, dtype) == missing
