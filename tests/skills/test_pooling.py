"""Contexts that grow with the text: token by token as at once, padded, in beams, in documents."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from builders import by_hand, close, llama, logits_of, own_model, qwen_mixture, some_skills, tokens
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.lm.attention import KeyValueCache
from expertise.mixture import Context, TopP
from expertise.skills import compose
from expertise.skills.call import Call
from expertise.skills.pooling import RunningMean


def composed(base: Any, reads: str, scale: float = 0.7) -> Any:
    """A model whose weights differ much from token to token."""
    torch.manual_seed(1)
    skills = some_skills(base, "all", "all")
    router: Any = Context(32, 2, (7,)) if reads == "pooled" else TopP(32, 2, 0.6)
    with torch.no_grad():
        for parameter in router.parameters():
            nn.init.normal_(parameter, std=scale if parameter.ndim > 1 else 0.5)
    return compose(base, skills, router=router, reads=reads)  # type: ignore[arg-type]


both_readings = pytest.mark.parametrize("reads", ["pooled", "token"])


# --- the mean itself ----------------------------------------------------------------------------------------


def test_means_so_far_of_tokens_that_count() -> None:
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    means = RunningMean()(hidden, Call(mask=mask))
    close(means[1], torch.stack([hidden[1, : t + 1].mean(0) for t in range(4)]))
    close(means[0, 2:], torch.stack([hidden[0, 2], hidden[0, 2:].mean(0)]))
    assert not means[0, :2].any()
    # A mask that reaches over what a cache holds counts from its end.
    longer = torch.cat([torch.ones(2, 3, dtype=torch.int64), mask], dim=1)
    assert torch.equal(RunningMean()(hidden, Call(mask=longer)), means)


def test_documents_side_by_side_have_a_mean_each() -> None:
    hidden = torch.randn(2, 6, 3)
    documents = torch.tensor([[4, 4, 4, 7, 7, 9], [1, 2, 2, 2, 1, 1]])
    means = RunningMean()(hidden, Call(documents=documents))
    for row, ends in ((0, [(0, 3), (3, 5), (5, 6)]), (1, [(0, 1), (1, 4), (4, 6)])):
        for start, end in ends:
            alone = RunningMean()(hidden[row : row + 1, start:end], Call())
            close(means[row, start:end], alone[0])


def test_means_are_exact_and_differentiable() -> None:
    assert RunningMean()(torch.randn(1, 2, 3).bfloat16(), Call()).dtype == torch.float32
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: RunningMean()(h, Call()), (hidden,))


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 1, 4, 4), {"full_attention": torch.ones(2, 4)}, torch.ones(2, 3)]
)
def test_a_mask_of_another_kind_is_refused(mask: Any) -> None:
    with pytest.raises(SkillError, match=r"needs an attention mask \[rows, tokens\]"):
        RunningMean()(torch.randn(2, 4, 3), Call(mask=mask))


def test_texts_side_by_side_in_a_model_of_transformers() -> None:
    """As packed by position: each text begins again at 0, and the mask keeps them apart."""
    base = llama()
    model = composed(base, "pooled")
    one, two = tokens(1, 4), tokens(1, 6, seed=2)
    ids, positions = torch.cat([one, two], 1), torch.cat([torch.arange(4), torch.arange(6)])[None]
    text = torch.tensor([0] * 4 + [1] * 6)
    mask = (text[:, None] == text) & torch.ones(10, 10, dtype=torch.bool).tril()
    found = logits_of(model, ids, attention_mask=mask[None, None], position_ids=positions)
    close(found[:, :4], logits_of(model, one))
    close(found[:, 4:], logits_of(model, two))
    # Without positions nobody can say where a text begins.
    with pytest.raises(SkillError, match="needs an attention mask"):
        logits_of(model, ids, attention_mask=mask[None, None])
    with pytest.raises(SkillError, match="needs an attention mask"):
        logits_of(model, ids, attention_mask={"full_attention": mask[None, None]}, position_ids=positions)


def test_documents_in_our_model() -> None:
    base, ids = own_model(), tokens(2, 10)
    model = composed(base, "pooled")
    documents = torch.tensor([[0] * 4 + [1] * 6, [0] * 7 + [1] * 3])
    found = logits_of(model, ids, documents=documents)
    for row, cut in ((0, 4), (1, 7)):
        close(found[row, :cut], logits_of(model, ids[row : row + 1, :cut])[0])
        close(found[row, cut:], logits_of(model, ids[row : row + 1, cut:])[0])


# --- a cache ------------------------------------------------------------------------------------------------


@both_readings
@pytest.mark.parametrize("pieces", [[1] * 10, [4, 6], [3, 1, 1, 5]])
def test_our_cache_token_by_token_equals_the_whole(reads: str, pieces: list[int]) -> None:
    base, ids = own_model(), tokens()
    model = composed(base, reads)
    whole = logits_of(model, ids)
    cache = KeyValueCache(base.config, 3, base.embedding.weight)
    close(torch.cat([logits_of(model, piece, cache=cache) for piece in ids.split(pieces, 1)], 1), whole)


@both_readings
@pytest.mark.parametrize("make", [llama, qwen_mixture])
def test_their_cache_token_by_token_equals_the_whole(make: Any, reads: str) -> None:
    from transformers import DynamicCache

    base, ids = make(), tokens()
    model = composed(base, reads)
    whole = logits_of(model, ids)
    for given in (True, False):
        # Given, or made by the first call and handed back.
        cache: Any = DynamicCache(config=base.config) if given else None
        parts = []
        for piece in ids.split([4, 1, 1, 4], 1):
            with torch.no_grad():
                out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        close(torch.cat(parts, 1), whole)


def test_two_texts_may_be_read_in_turns() -> None:
    base = own_model()
    model = composed(base, "pooled")
    texts = [tokens(2, 6, seed) for seed in (1, 2)]
    caches = [KeyValueCache(base.config, 2, base.embedding.weight) for _ in texts]
    found: list[list[Tensor]] = [[], []]
    for piece in range(3):
        for text, cache, parts in zip(texts, caches, found, strict=True):
            parts.append(logits_of(model, text[:, 2 * piece : 2 * piece + 2], cache=cache))
    for text, parts in zip(texts, found, strict=True):
        close(torch.cat(parts, 1), logits_of(model, text))


def test_a_cache_that_others_filled_is_refused() -> None:
    from transformers import DynamicCache

    base, ids = llama(), tokens()
    model = composed(base, "pooled")
    cache = DynamicCache(config=base.config)
    logits_of(base, ids, past_key_values=cache)
    match = "a cache that this model filled itself"
    with pytest.raises(SkillError, match=match):
        model(ids, past_key_values=cache)
    cache = DynamicCache(config=base.config)
    logits_of(model, ids, past_key_values=cache)
    with pytest.raises(SkillError, match=match):
        model(ids[:2], past_key_values=cache)
    cache.crop(-2)
    with pytest.raises(SkillError, match=match):
        model(ids[:, :1], past_key_values=cache)
    with pytest.raises(SkillError, match=match):
        model(ids[:, :1], past_key_values=copy.deepcopy(cache))
    # With weights of its own a call reads nothing.
    model(ids[:, :1], past_key_values=cache, weights=[1.0, 0.0])


def test_a_failed_call_does_not_count() -> None:
    base, ids = own_model(), tokens(2, 6)
    model = composed(base, "pooled")
    whole = logits_of(model, ids)
    cache = KeyValueCache(base.config, 2, base.embedding.weight)
    first = logits_of(model, ids[:, :3], cache=cache)
    with pytest.raises(IndexError):
        logits_of(model, torch.full((2, 1), 64), cache=cache)
    close(torch.cat([first, logits_of(model, ids[:, 3:], cache=cache)], 1), whole)


def test_caches_are_let_go() -> None:
    from transformers import DynamicCache

    base, ids = llama(), tokens()
    model = composed(base, "pooled")
    cache = DynamicCache(config=base.config)
    logits_of(model, ids, past_key_values=cache)
    gone = weakref.ref(cache)
    gc.collect()
    gc.disable()
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


# --- generating ---------------------------------------------------------------------------------------------


@both_readings
def test_our_generate_equals_reading_all_of_it_anew_for_every_token(reads: str) -> None:
    base, ids = own_model(), tokens(2, 4)
    model = composed(base, reads)
    found = model.generate(ids, 8, temperature=0.0)
    slow = ids
    for _ in range(8):
        slow = torch.cat([slow, logits_of(model, slow)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, slow)
    assert not torch.equal(found, base.generate(ids, 8, temperature=0.0))
    assert torch.equal(model.generate(ids, 8, seed=3), model.generate(ids, 8, seed=3))
    # Past the context the newer half is read again.
    assert model.generate(ids, 40, temperature=0.0).shape == (2, 44)


def greedy(model: Any, ids: Tensor, steps: int, **given: Any) -> Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, logits_of(model, ids, **given)[:, -1:].argmax(-1)], 1)
    return ids


@both_readings
def test_their_generate_equals_reading_all_of_it_anew_for_every_token(reads: str) -> None:
    base, ids = llama(), tokens(2, 4)
    model = composed(base, reads)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert torch.equal(found, greedy(model, ids, 8))
    assert not torch.equal(found, greedy(base, ids, 8))


@both_readings
def test_prompts_that_are_padded_on_the_left(reads: str) -> None:
    base = llama()
    model = composed(base, reads)
    short, long = tokens(1, 3), tokens(1, 7, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.int64), short], 1), long])
    mask = (ids != 0).long()
    both = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(both[0, 4:], greedy(model, short, 6)[0])
    assert torch.equal(both[1], greedy(model, long, 6)[0])
    close(logits_of(model, ids, attention_mask=mask)[0, 4:], logits_of(model, short)[0])


def beams_by_hand(model: Any, ids: Tensor, steps: int, width: int) -> tuple[Tensor, float]:
    """Beam search without a cache: every candidate is read anew."""
    beams = [(0.0, ids)]
    for _ in range(steps):
        grown = []
        for score, text in beams:
            logs = logits_of(model, text)[0, -1].log_softmax(-1)
            for token in range(64):
                grown.append((score + logs[token].item(), torch.cat([text, torch.tensor([[token]])], 1)))
        beams = sorted(grown, key=lambda pair: -pair[0])[:width]
    return beams[0][1], beams[0][0]


@both_readings
def test_beams_carry_their_contexts_along(reads: str) -> None:
    base = llama()
    model = composed(base, reads)
    for seed in (1, 2, 3):
        ids = tokens(1, 4, seed)
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, num_beams=3, do_sample=False
        )
        assert torch.equal(found, beams_by_hand(model, ids, 5, 3)[0])


def test_several_continuations_of_a_row_keep_the_row_s_skills() -> None:
    base, ids = llama(), tokens(2, 4)
    skills = some_skills(base, "all", "all")
    model: Any = compose(base, skills)
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6}
    alone = [by_hand(base, skills, row.tolist()) for row in table]
    with model.composition.using(weights=table):
        found = model.generate(ids, do_sample=False, **options)
        for i, plain in enumerate(alone):
            assert torch.equal(found[i : i + 1], greedy(plain, ids[i : i + 1], 6))
        torch.manual_seed(0)
        sampled = model.generate(ids, do_sample=True, num_return_sequences=3, **options)
        assert sampled.shape == (6, 10)
        # The two rows' continuations were made by their own weights: likely there, less likely swapped.
        scores = [
            logits_of(plain, sampled)[:, 3:-1].log_softmax(-1).gather(-1, sampled[:, 4:, None]).sum((1, 2))
            for plain in alone
        ]
        torch.manual_seed(0)
        assert torch.equal(model.generate(ids, do_sample=True, num_return_sequences=3, **options), sampled)
        beams = model.generate(ids, do_sample=False, num_beams=3, num_return_sequences=2, **options)
        for i, plain in enumerate(alone):
            mine = plain.generate(
                ids[i : i + 1],
                do_sample=False,
                num_beams=3,
                num_return_sequences=2,
                attention_mask=torch.ones(1, 4, dtype=torch.int64),
                max_new_tokens=6,
            )
            assert torch.equal(beams[2 * i : 2 * i + 2], mine)
    assert all(score.isfinite().all() for score in scores)
    with model.composition.using(skills=["a", None]):
        found = model.generate(ids, do_sample=False, **options)
    assert torch.equal(found[1:], greedy(base, ids[1:], 6))
    # Sampled with the seed of a row's own merged weights, a row gets the same text.
    with model.composition.using(weights=[1.0, 0.0]):
        torch.manual_seed(4)
        found = model.generate(ids, do_sample=True, num_return_sequences=2, **options)
    torch.manual_seed(4)
    assert torch.equal(found, alone[0].generate(ids, do_sample=True, num_return_sequences=2, **options))
    with pytest.raises(ValueError, match="weights"):
        model.generate(ids, weights=table, **options)


def test_a_context_serves_a_whole_generation() -> None:
    base, ids = llama(), tokens(2, 4)
    skills = some_skills(base, "all", "all")
    router = Context(5, 2, (7,))
    model: Any = compose(base, skills, router=router)
    context = torch.randn(2, 5)
    with model.composition.using(context=context):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert torch.equal(found, greedy(model, ids, 6, context=context))


def test_weights_per_token_cannot_serve_a_generation() -> None:
    base, ids = llama(), tokens(2, 4)
    model: Any = compose(base, some_skills(base, "all"))
    with (
        model.composition.using(weights=torch.ones(2, 4, 1)),
        pytest.raises(
            SkillError, match=r"weights for shape \[2, 4\] do not fit a layer that sees shape \[2, 1\]"
        ),
    ):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
