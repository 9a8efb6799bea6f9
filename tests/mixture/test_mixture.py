"""`Mixture` as a module: names, recording, copies, refusals; merged shared experts."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from expertise.errors import RecipeError
from expertise.mixture import (
    LowRankExperts,
    Mixture,
    Routes,
    SwiGLU,
    SwiGLUExperts,
    TopK,
    TopP,
    recording,
)

DIM = 8


def _mixture(always: nn.Module | None = None, **options: Any) -> Mixture:
    return Mixture(TopK(DIM, 4, 2), SwiGLUExperts(4, DIM, 16), always, **options)


# --- the stable surface -----------------------------------------------------------------------------------


def test_state_dict_of_feed_forward_experts() -> None:
    shapes = {name: tuple(t.shape) for name, t in _mixture(SwiGLU(DIM, 6)).state_dict().items()}
    assert shapes == {
        "router.weight": (4, DIM),
        "parts.gate_up": (4, 32, DIM),
        "parts.down": (4, DIM, 16),
        "always.gate_up.weight": (12, DIM),
        "always.down.weight": (DIM, 6),
    }


def test_state_dict_of_low_rank_skills() -> None:
    mixture = Mixture(TopP(DIM, 3, 0.5), LowRankExperts(3, DIM, 5, 2), nn.Linear(DIM, 5, bias=False))
    shapes = {name: tuple(t.shape) for name, t in mixture.state_dict().items()}
    assert shapes == {
        "router.weight": (3, DIM),
        "parts.lora_A": (3, 2, DIM),
        "parts.lora_B": (3, 5, 2),
        "parts.scaling": (3,),
        "always.weight": (5, DIM),
    }
    assert mixture(torch.randn(2, 3, DIM)).shape == (2, 3, 5)


def test_positional_signatures() -> None:
    TopK(DIM, 4, 2, True, 2.0)
    TopP(DIM, 4, 0.5, 3, True, "mean-one")
    SwiGLUExperts(4, DIM, 16)
    LowRankExperts(4, DIM, 5, 2)
    SwiGLU(DIM, 6)
    Mixture(None, SwiGLUExperts(4, DIM, 16), SwiGLU(DIM, 6))


# --- always -----------------------------------------------------------------------------------------------


def test_always_is_added_with_weight_one() -> None:
    always = SwiGLU(DIM, 6)
    mixture = _mixture(always)
    x = torch.randn(5, DIM)
    with_always = mixture(x)
    mixture.always = None
    torch.testing.assert_close(with_always - mixture(x), always(x))


def test_always_sees_the_tokens_in_their_own_shape() -> None:
    class Shapes(nn.Identity):
        seen: tuple[int, ...] = ()

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            self.seen = tuple(input.shape)
            return input

    always = Shapes()
    _mixture(always)(torch.randn(2, 3, DIM))
    assert always.seen == (2, 3, DIM)


def test_new_low_rank_parts_change_nothing() -> None:
    """B starts at zero: a base with new skills computes what the base computes."""
    base = nn.Linear(DIM, 5)
    mixture = Mixture(TopK(DIM, 3, 2), LowRankExperts(3, DIM, 5, 2), base)
    x = torch.randn(4, DIM)
    assert torch.equal(mixture(x), base(x))


@pytest.mark.parametrize("widths", [[6, 6], [3, 8, 5]])
def test_merged_shared_experts_equal_their_sum(widths: list[int]) -> None:
    """K_s SwiGLU of any widths are one whose gates, ups and columns of down are concatenated."""
    experts = [SwiGLU(DIM, width) for width in widths]
    merged = SwiGLU(DIM, sum(widths))
    gates = [e.gate_up.weight[:width] for e, width in zip(experts, widths, strict=True)]
    ups = [e.gate_up.weight[width:] for e, width in zip(experts, widths, strict=True)]
    with torch.no_grad():
        merged.gate_up.weight.copy_(torch.cat([*gates, *ups]))
        merged.down.weight.copy_(torch.cat([e.down.weight for e in experts], dim=1))
    x = torch.randn(7, DIM)
    torch.testing.assert_close(merged(x), torch.stack([e(x) for e in experts]).sum(0))


def test_no_always_at_width_zero() -> None:
    assert SwiGLU.Config(hidden=0).build(DIM) is None
    assert SwiGLU.Config(hidden=0).num_params(DIM) == 0
    built = SwiGLU.Config(hidden=6).build(DIM)
    assert built is not None
    assert sum(p.numel() for p in built.parameters()) == SwiGLU.Config(hidden=6).num_params(DIM)


# --- routes and recording ---------------------------------------------------------------------------------


def test_given_routes_replace_the_router() -> None:
    mixture = _mixture()
    x = torch.randn(3, DIM)
    nothing = Routes.dense(torch.zeros(3, 4))
    assert not mixture(x, routes=nothing).any()
    assert mixture(x).any()


def test_nothing_is_recorded_unless_asked() -> None:
    mixture = _mixture()
    mixture(torch.randn(2, DIM))
    assert mixture.last_routes is None


def test_recording_keeps_the_last_call_with_its_graph() -> None:
    mixture = _mixture()
    with mixture.recording() as same:
        assert same is mixture
        mixture(torch.randn(2, DIM))
        mixture(torch.randn(3, DIM))
    routes = mixture.last_routes
    assert routes is not None
    assert routes.num_tokens == 3
    assert routes.affinities.requires_grad
    mixture(torch.randn(5, DIM))
    assert mixture.last_routes is routes
    with mixture.recording():
        assert mixture.last_routes is None


def test_recording_keeps_given_routes() -> None:
    mixture = _mixture()
    routes = Routes.dense(torch.ones(2, 4))
    with mixture.recording():
        mixture(torch.randn(2, DIM), routes=routes)
    assert mixture.last_routes is routes


def test_recording_ends_after_an_error() -> None:
    mixture = _mixture()
    with pytest.raises(KeyError), mixture.recording():
        raise KeyError
    mixture(torch.randn(2, DIM))
    assert mixture.last_routes is None


def test_recording_does_not_change_the_result() -> None:
    mixture = _mixture()
    x = torch.randn(2, DIM)
    with mixture.recording():
        recorded = mixture(x)
    assert torch.equal(recorded, mixture(x))


def test_recording_a_model_finds_every_mixture_in_order() -> None:
    first, second = _mixture(), Mixture(TopP(DIM, 3, 0.5), SwiGLUExperts(3, DIM, 16))
    model = nn.Sequential(first, nn.Linear(DIM, DIM), nn.Sequential(second))
    with recording(model) as mixtures:
        model(torch.randn(2, DIM))
    assert mixtures == [first, second]
    assert [m.last_routes.num_parts for m in mixtures if m.last_routes] == [4, 3]
    model(torch.randn(6, DIM))
    assert [m.last_routes.num_tokens for m in mixtures if m.last_routes] == [2, 2]


def test_recording_a_model_without_mixtures() -> None:
    with recording(nn.Linear(2, 2)) as mixtures:
        assert mixtures == []


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_after_recording(copied: Any) -> None:
    """Recorded routes hold a graph, which cannot be copied and belongs to the original's call."""
    mixture = _mixture(SwiGLU(DIM, 6))
    x = torch.randn(2, DIM)
    with mixture.recording():
        y = mixture(x)
    twin = copied(mixture)
    assert twin.last_routes is None
    assert mixture.last_routes is not None
    assert torch.equal(twin(x), y)
    assert twin.last_routes is None


def test_a_copy_made_while_recording_does_not_record() -> None:
    """It has no end of `with` that would switch it off: it would hold a graph after every call."""
    mixture = _mixture()
    with mixture.recording():
        twin = copy.deepcopy(mixture)
        twin(torch.randn(2, DIM))
    assert twin.last_routes is None


def test_routes_can_be_noted_without_a_call() -> None:
    """For layers that compute the sum themselves."""
    mixture = _mixture()
    routes = Routes.dense(torch.ones(2, 4))
    mixture.note(routes)
    assert mixture.last_routes is None
    with mixture.recording():
        mixture.note(routes)
    assert mixture.last_routes is routes


# --- parts that are moved with more than the token --------------------------------------------------------


class Shifted(SwiGLUExperts):
    """Each token brings a number along, which is added to what every part makes of it."""

    shifts: torch.Tensor

    def carry(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.shifts], dim=1)

    def one(self, part: int, x: torch.Tensor) -> torch.Tensor:
        return super().one(part, x[:, :-1]) + x[:, -1:]

    def grouped(self, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return super().grouped(rows[:, :-1].contiguous(), offsets) + rows[:, -1:]

    def dense(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return super().dense(x[:, :-1], gates) + x[:, -1:] * gates.sum(1, keepdim=True)


@pytest.mark.parametrize("always", [None, SwiGLU(DIM, 6)], ids=["alone", "beside always"])
@pytest.mark.parametrize("dispatch", ["auto", "grouped", "dense", "reference"])
@pytest.mark.parametrize("router", [TopK(DIM, 4, 2), TopP(DIM, 4, 0.6)], ids=["top-k", "top-p"])
def test_what_a_part_carries_goes_with_the_token(
    router: Any, dispatch: str, always: nn.Module | None
) -> None:
    plain = Mixture(router, SwiGLUExperts(4, DIM, 16), always, dispatch=dispatch)
    parts = Shifted(4, DIM, 16)
    parts.load_state_dict(plain.parts.state_dict())
    parts.shifts = torch.randn(6, 1)
    x = torch.randn(2, 3, DIM)
    found = Mixture(router, parts, always, dispatch=dispatch)(x)
    shift = router(x).gates.sum(1, keepdim=True) * parts.shifts
    torch.testing.assert_close(found, plain(x) + shift.view(2, 3, 1))


@pytest.mark.parametrize("kind", ["swiglu", "low rank"])
def test_the_dense_sum_may_be_made_onto_what_is_always_on(kind: str) -> None:
    parts: Any = SwiGLUExperts(3, DIM, 4) if kind == "swiglu" else LowRankExperts(3, DIM, DIM, 2)
    for tensor in parts.state_dict().values():
        nn.init.normal_(tensor)
    x, gates, y = torch.randn(5, DIM), torch.randn(5, 3), torch.randn(5, DIM)
    before = y.clone()
    torch.testing.assert_close(parts.dense_onto(y, x, gates), y + parts.dense(x, gates))
    assert torch.equal(y, before)
    assert torch.equal(parts.dense_onto(y, x, torch.zeros(5, 3)), y)


def test_which_routes_are_computed_densely_is_said_by_the_parts() -> None:
    """Bringing a token to a low-rank part costs more than to compute a few ranks that nobody asked for."""
    x = torch.randn(4, DIM)
    sparse, dense = TopK(DIM, 4, 1)(x), Routes.dense(torch.ones(4, 4))
    few, many = LowRankExperts(4, DIM, DIM, 2), LowRankExperts(4, DIM, DIM, 256)
    assert few.is_dense_for(sparse)
    assert not many.is_dense_for(sparse)
    assert many.is_dense_for(dense)
    experts = SwiGLUExperts(4, DIM, 16)
    assert experts.is_dense_for(dense)
    assert not experts.is_dense_for(sparse)
    for parts in (few, many):
        nn.init.normal_(parts.lora_B)
        found = Mixture(None, parts)(x, routes=sparse)
        torch.testing.assert_close(
            found, Mixture(None, parts, dispatch="reference")(x, routes=sparse), rtol=1e-4, atol=1e-4
        )


# --- refusals ---------------------------------------------------------------------------------------------


def test_router_and_parts_must_agree() -> None:
    with pytest.raises(RecipeError, match=r"5 parts.*4") as refused:
        Mixture(TopK(DIM, 5, 2), SwiGLUExperts(4, DIM, 16))
    assert "\n" not in refused.value.message


def test_unknown_dispatch_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="gruoped") as refused:
        _mixture(dispatch="gruoped")
    assert any("'grouped'" in hint for hint in refused.value.hints)


def test_neither_router_nor_routes() -> None:
    mixture = Mixture(None, SwiGLUExperts(4, DIM, 16))
    with pytest.raises(RecipeError, match="routes"):
        mixture(torch.randn(2, DIM))


@pytest.mark.parametrize("dispatch", ["auto", "grouped", "dense", "reference"])
@pytest.mark.parametrize(
    ("num_tokens", "num_parts"), [(3, 4), (1, 4), (2, 5), (2, 3)], ids=["more", "fewer", "5 of 4", "3 of 4"]
)
def test_given_routes_must_fit_tokens_and_parts(dispatch: str, num_tokens: int, num_parts: int) -> None:
    """Else a token would silently get nothing, or memory that nobody wrote."""
    mixture = Mixture(None, SwiGLUExperts(4, DIM, 16), dispatch=dispatch)
    routes = Routes(
        gates=torch.ones(num_tokens, 1),
        affinities=torch.ones(num_tokens, num_parts) / num_parts,
        part_ids=torch.full((num_tokens, 1), num_parts - 1),
    )
    with pytest.raises(RecipeError) as refused:
        mixture(torch.randn(2, DIM), routes=routes)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "make",
    [
        lambda: SwiGLUExperts(0, DIM, 16),
        lambda: SwiGLUExperts(4, DIM, 0),
        lambda: LowRankExperts(0, DIM, DIM, 2),
        lambda: LowRankExperts(3, DIM, DIM, 0),
        lambda: SwiGLU.Config(hidden=-1),
    ],
)
def test_sizes_that_cannot_be(make: Any) -> None:
    with pytest.raises(RecipeError) as refused:
        make()
    assert "\n" not in refused.value.message
