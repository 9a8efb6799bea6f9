"""Switches of an evaluation against a computation token by token; the model afterwards is as before."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.lm.config import ModelConfig
from expertise.lm.data import Prepared, prepare
from expertise.lm.evaluate import Switches, domain_texts, evaluate, switched
from expertise.lm.evaluate.run import evaluate_run
from expertise.lm.model import LanguageModel
from expertise.lm.train import train
from expertise.mixture import Hash, SwiGLU, SwiGLUExperts, TopK, TopP
from expertise.mixture.mixture import recording

Make = Callable[..., Any]
E = 8

ROUTERS: dict[str, Any] = {
    "top_k": TopK.Config(k=3),
    "top_k normalised": TopK.Config(k=2, normalize=True, scale=2.0),
    "top_k biased": TopK.Config(k=3, bias_step=0.1),
    "top_k sigmoid": TopK.Config(k=3, scores="sigmoid"),
    "top_p": TopP.Config(p=0.5),
    "top_p capped": TopP.Config(p=0.6, max_parts=3, bias_step=0.1),
    "top_p mean-one": TopP.Config(p=0.5, scale="mean-one"),
}


def model_of(router: Any, always: int = 12) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=16,
        num_layers=3,
        num_heads=2,
        context=12,
        vocab_size=30,
        first_dense=1,
        dense_hidden=16,
        router=router,
        parts=SwiGLUExperts.Config(num_parts=E, hidden=8),
        always=SwiGLU.Config(hidden=always),
    )
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for mixture in model.mixtures().values():
            if not isinstance(mixture.router, Hash):
                mixture.router.weight.mul_(3)
                if mixture.router.bias is not None:
                    mixture.router.bias.copy_(0.2 * torch.randn(E))
    return model


TOKENS = torch.randint(30, (3, 12), generator=torch.Generator().manual_seed(2))


# --- by hand: what one token takes -----------------------------------------------------------------------


def by_hand(
    u: Tensor, weight: Tensor, bias: list[float], router: Any, s: Switches
) -> list[tuple[int, float]]:
    """Parts and gates of one token, in plain numbers."""
    logits = (weight.double() @ u.double()).tolist()
    softmax = router.scores == "softmax"
    scores = [math.exp(x) if softmax else 1 / (1 + math.exp(-x)) for x in logits]
    shares = [x / sum(scores) for x in scores]
    scores = shares if softmax else scores
    masked = set(sorted(range(E), key=lambda i: (-shares[i], i))[: round(s.mask_top * E)])
    if s.renew_softmax:
        rest = sum(math.exp(logits[i]) for i in range(E) if i not in masked)
        shares = scores = [math.exp(x) / rest for x in logits]
    order = sorted((i for i in range(E) if i not in masked), key=lambda i: (-(scores[i] + bias[i]), i))
    extra = s.extra_parts if s.extra_parts is not None else 1 if s.drop_always else 0
    if router.name == "top_k":
        number = (s.k or router.k) + extra
    else:
        number, p = 0, s.p or router.p
        while number < len(order) and sum(shares[i] for i in order[:number]) <= p:
            number += 1
        number = min(max(number, 1), router.max_parts or E) + extra
    chosen = order[:number]
    gates = [scores[i] for i in chosen]
    if router.normalize or router.scale == "mean-one":
        gates = [gate / sum(gates) for gate in gates]
    factor = len(chosen) if router.scale == "mean-one" else router.scale
    return [(i, gate * factor) for i, gate in zip(chosen, gates, strict=True)]


@torch.no_grad()
def logits_by_hand(model: LanguageModel, tokens: Tensor, s: Switches) -> tuple[Tensor, list[list[list[int]]]]:
    """Logits, and for each mixture layer and token the parts."""
    x, taken = model.embedding(tokens), []
    for index, block in enumerate(model.blocks):
        x = x + block.attention(block.attention_norm(x), model.rotary, None)
        normed, layer = block.feed_forward_norm(x), model.config.layer(index)
        if layer is None:
            x = x + block.feed_forward(normed)
            continue
        mixture, rows, ids = block.feed_forward, [], []
        router = mixture.router
        bias = [0.0] * E if router.bias is None else router.bias.tolist()
        for u in normed.reshape(-1, normed.shape[-1]):
            weights = by_hand(u, router.weight, bias, layer.router, s)
            y = sum(gate * mixture.parts.one(part, u[None])[0] for part, gate in weights)
            rows.append(y if s.drop_always else y + mixture.always(u[None])[0])
            ids.append([part for part, _ in weights])
        x = x + torch.stack(rows).view_as(normed)
        taken.append(ids)
    return model.norm(x) @ model.head_weight.T, taken


def parts_of(mixture: Any) -> list[list[int]]:
    routes = mixture.last_routes
    rows = zip(routes.part_ids.tolist(), routes.parts_per_token().tolist(), strict=True)
    return [row[:number] for row, number in rows]


SWITCHES: dict[str, Switches] = {
    "none": Switches(),
    "mask": Switches(mask_top=0.25),
    "mask renewed": Switches(mask_top=0.25, renew_softmax=True),
    "drop": Switches(drop_always=True),
    "drop alone": Switches(drop_always=True, extra_parts=0),
    "extra": Switches(extra_parts=2),
    "k": Switches(k=1),
    "p": Switches(p=0.8),
    "all of top_k": Switches(mask_top=0.125, renew_softmax=True, drop_always=True, k=4),
    "all of top_p": Switches(mask_top=0.125, drop_always=True, p=0.2, extra_parts=2),
}


def fits(router: str, s: Switches) -> bool:
    right = (s.k is None or router.startswith("top_k")) and (s.p is None or router.startswith("top_p"))
    return right and not (s.renew_softmax and "sigmoid" in router)


CASES = [(r, s) for r in ROUTERS for s in SWITCHES if fits(r, SWITCHES[s])]


@pytest.mark.parametrize(("router", "case"), CASES, ids=[f"{r}-{s}" for r, s in CASES])
def test_switches_equal_the_computation_by_hand(router: str, case: str) -> None:
    model, switches = model_of(ROUTERS[router]), SWITCHES[case]
    expected, taken = logits_by_hand(model, TOKENS, switches)
    with switched(model, switches) as same, recording(model) as mixtures, torch.no_grad():
        assert same is model
        found = model(TOKENS)
    assert [parts_of(mixture) for mixture in mixtures] == taken
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


CHANGING = [(r, s) for r, s in CASES if r in ("top_k", "top_p") and s != "none"]


@pytest.mark.parametrize(("router", "case"), CHANGING, ids=[f"{r}-{s}" for r, s in CHANGING])
def test_every_switch_changes_something(router: str, case: str) -> None:
    model = model_of(ROUTERS[router])
    with torch.no_grad():
        plain = model(TOKENS)
        with switched(model, SWITCHES[case]):
            assert (model(TOKENS) - plain).abs().max() > 1e-3


def test_masked_parts_keep_or_share_out_their_probability() -> None:
    """Affinities: all eight as they were, or nothing for the masked and a sum of 1 over the rest."""
    model = model_of(ROUTERS["top_k"])
    found = {}
    for renew in (False, True):
        switches = Switches(mask_top=0.25, renew_softmax=renew)
        with switched(model, switches), recording(model) as mixtures, torch.no_grad():
            model(TOKENS)
        found[renew] = mixtures[0].last_routes
    with recording(model) as mixtures, torch.no_grad():
        model(TOKENS)
    plain = mixtures[0].last_routes.affinities
    assert torch.equal(found[False].affinities, plain)
    top = plain.topk(2).indices
    assert not found[True].affinities.gather(1, top).any()
    torch.testing.assert_close(found[True].affinities.sum(1), torch.ones(36))
    assert not (found[True].part_ids[:, :, None] == top[:, None]).any()
    assert torch.equal(found[True].part_ids, found[False].part_ids)


# --- what is left behind ------------------------------------------------------------------------------------


def fingerprint(model: LanguageModel) -> list[tuple[str, int, list[Any]]]:
    tensors = [(name, t.data_ptr(), t.tolist()) for name, t in model.state_dict().items()]
    return tensors + [(name, id(module), [module.training]) for name, module in model.named_modules()]


@pytest.mark.parametrize(("router", "case"), [c for c in CASES if c[0] in ("top_k biased", "top_p capped")])
def test_the_model_is_as_before(router: str, case: str) -> None:
    model = model_of(ROUTERS[router])
    before, attributes = fingerprint(model), [repr(m) for m in model.mixtures().values()]
    with torch.no_grad():
        logits = model(TOKENS)
        state = torch.get_rng_state()
        with switched(model, SWITCHES[case]):
            model(TOKENS)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(model(TOKENS), logits)
    assert fingerprint(model) == before
    assert [repr(m) for m in model.mixtures().values()] == attributes


def test_the_model_is_as_before_after_an_error_and_after_a_refusal() -> None:
    model = model_of(ROUTERS["top_k"])
    before = fingerprint(model)
    with pytest.raises(ZeroDivisionError), switched(model, Switches(drop_always=True)):
        raise ZeroDivisionError
    assert fingerprint(model) == before
    with pytest.raises(RecipeError), switched(model, Switches(k=99)):
        pytest.fail("it must be refused")
    assert fingerprint(model) == before


@pytest.mark.parametrize("router", ["top_k", "top_p capped"])
def test_without_switches_the_model_is_not_even_wrapped(router: str) -> None:
    model = model_of(ROUTERS[router])
    before = fingerprint(model)
    with switched(model, Switches()):
        assert fingerprint(model) == before


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Switches(mask_top=1.0), r"mask_top must lie in \[0, 1\), not 1.0"),
        (lambda: Switches(mask_top=-0.1), "not -0.1"),
        (lambda: Switches(mask_top=math.nan), "not nan"),
        (lambda: Switches(renew_softmax=True), "renew_softmax needs mask_top"),
        (lambda: Switches(extra_parts=-1), "extra_parts must be 0 or more, not -1"),
    ],
)
def test_switches_that_cannot_be(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make()


HASH = Hash.Config()


@pytest.mark.parametrize(
    ("router", "always", "switches", "words"),
    [
        (ROUTERS["top_p"], 12, Switches(k=2), "a 'top_p' router has no k"),
        (ROUTERS["top_k"], 12, Switches(p=0.4), "a 'top_k' router has no p"),
        (ROUTERS["top_k"], 12, Switches(k=9), r"k \(9\) is larger than its number of parts \(8\)"),
        (ROUTERS["top_k"], 12, Switches(k=0), "k must be at least 1, not 0"),
        (ROUTERS["top_p"], 12, Switches(p=1.5), r"p must lie in \(0, 1\], not 1.5"),
        (ROUTERS["top_k"], 0, Switches(drop_always=True), "layer 1 has no always-on part"),
        (ROUTERS["top_k"], 12, Switches(mask_top=0.01), r"mask_top \(0.01\) of 8 parts is none"),
        (ROUTERS["top_k"], 12, Switches(mask_top=0.75), "8 parts less 6 masked ones are too few for 3 per"),
        (ROUTERS["top_k"], 12, Switches(extra_parts=6), "too few for 3 per token and 6 more"),
        (ROUTERS["top_p"], 12, Switches(mask_top=0.95), "too few for 1 per token"),
        (ROUTERS["top_k sigmoid"], 12, Switches(mask_top=0.25, renew_softmax=True), "needs softmax scores"),
        (HASH, 12, Switches(mask_top=0.25), "a 'hash' router learns no probabilities"),
        (HASH, 12, Switches(k=2), "a 'hash' router learns no probabilities"),
        (HASH, 12, Switches(drop_always=True), "a 'hash' router learns no probabilities"),
    ],
)
def test_what_makes_no_sense_for_a_model(router: Any, always: int, switches: Switches, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused, switched(model_of(router, always), switches):
        pytest.fail("it must be refused")
    assert "\n" not in refused.value.message


def test_a_hash_model_may_drop_what_is_always_on() -> None:
    model = model_of(HASH)
    with torch.no_grad():
        plain = model(TOKENS)
        with switched(model, Switches(drop_always=True, extra_parts=0)):
            assert not torch.equal(model(TOKENS), plain)


def test_a_dense_model_has_nothing_to_switch() -> None:
    dense = LanguageModel(
        ModelConfig(dim=16, num_layers=1, num_heads=2, context=12, vocab_size=30, dense_hidden=16)
    )
    with switched(dense, Switches()):
        dense(TOKENS)
    with pytest.raises(RecipeError, match="this model has none"), switched(dense, Switches(k=1)):
        pytest.fail("it must be refused")


# --- a whole run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_recipe: Make) -> Path:
    folder = tmp_path_factory.mktemp("switched") / "run"
    threads = torch.get_num_threads()
    train(small_recipe("model.router={name='top_k', k=2}", "train.steps=20"), folder, lambda _: None)
    torch.set_num_threads(threads)
    return folder


def evaluated(run: Path, switches: Switches | None = None) -> dict[str, Any]:
    return evaluate_run(run, "validation", 400, "cpu", 1, lambda _: None, switches)


def test_a_run_is_evaluated_under_switches_and_says_which(run: Path) -> None:
    plain = evaluated(run)
    assert plain["switches"] == {}
    assert evaluated(run, Switches()) == plain
    fewer = evaluated(run, Switches(k=1))
    assert fewer["switches"] == {"k": 1}
    assert fewer["parts_per_token"]["mean"] == 1.0
    dropped = evaluated(run, Switches(drop_always=True, mask_top=0.25))
    assert dropped["switches"] == {"drop_always": True, "extra_parts": 1, "mask_top": 0.25}
    assert dropped["parts_per_token"]["mean"] == 3.0
    assert dropped["bits_per_byte"]["mean"] > plain["bits_per_byte"]["mean"]
    assert evaluated(run) == plain


def test_generation_under_switches_is_the_switched_models(run: Path, small_recipe: Make) -> None:
    model = model_of(ROUTERS["top_p"])
    with switched(model, Switches(p=0.9)):
        tokens = TOKENS[:, :3]
        for _ in range(4):
            with torch.no_grad():
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(model.generate(TOKENS[:, :3], 4, temperature=0.0), tokens)


def test_evaluation_counts_parts_beyond_the_cap(small_recipe: Make) -> None:
    """The histogram of parts per token is as wide as what a token may take under the switches."""
    recipe = small_recipe()
    prepared: Prepared = prepare(recipe.data, recipe.tokenizer)
    config = ModelConfig(
        dim=16,
        num_layers=1,
        num_heads=2,
        context=16,
        vocab_size=prepared.vocab_size,
        router=TopP.Config(p=0.9, max_parts=2),
        parts=SwiGLUExperts.Config(num_parts=4, hidden=8),
    )
    model = LanguageModel(config)
    texts = domain_texts(prepared, "validation", 300, 16)
    with switched(model, Switches(extra_parts=2)):
        found = evaluate(model, texts, 8)
    assert found.mean_parts_per_token() == pytest.approx(4.0)
