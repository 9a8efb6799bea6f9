"""The composed model: the base untouched, constant, per-row and per-token weights, refusals."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    LANGUAGE_MODELS,
    by_hand,
    close,
    llama,
    logits_of,
    net,
    own_model,
    qwen_mixture,
    random_skill,
    same_state,
    some_skills,
    state_of,
    tokens,
)
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.mixture import Context, TopK
from expertise.skills import Library, Skill, compose, composition_of, extended, merged, skills_of

every_model = pytest.mark.parametrize("make", LANGUAGE_MODELS.values(), ids=list(LANGUAGE_MODELS))


# --- the base ---------------------------------------------------------------------------------------------


@every_model
def test_the_base_is_as_it_was_before_during_and_after(make: Any) -> None:
    base, ids = make(), tokens()
    for parameter in list(base.parameters())[::2]:
        parameter.requires_grad_(False)
    base.train()
    base.eval()
    before, expected = state_of(base), logits_of(base, ids)
    embedding = next(n for n, m in base.named_modules() if isinstance(m, nn.Embedding))
    skills = some_skills(base, ["all", embedding], "all")
    model: Any = compose(base, skills, weights=[0.7, -0.3])
    same_state(before, state_of(base))
    changed = logits_of(model, ids)
    assert (changed - expected).abs().max() > 0.05
    model.train()
    model(ids)
    same_state(before, state_of(base))
    assert torch.equal(logits_of(base, ids), expected)
    # Zero in every way that it can be said.
    assert torch.equal(logits_of(model, ids, weights=[0.0, 0.0]), expected)
    assert torch.equal(logits_of(model, ids, weights=torch.zeros(3, 2)), expected)
    assert torch.equal(logits_of(model, ids, weights=torch.zeros(3, 10, 2)), expected)
    assert torch.equal(logits_of(model, ids, skills=[None, None, None]), expected)
    model.composition.set_weights(None)
    assert torch.equal(logits_of(model, ids), expected)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    same_state(before, state_of(base))
    assert torch.equal(logits_of(base, ids), expected)


@every_model
def test_only_skills_take_memory(make: Any) -> None:
    base = make()
    skills = some_skills(base, "all", "all")
    model = compose(base, skills, weights=[1.0, 1.0])
    theirs = {p.data_ptr() for p in base.parameters()}
    own = [p for p in model.parameters() if p.data_ptr() not in theirs]
    shared = {p.data_ptr() for p in model.parameters()} & theirs
    assert shared == theirs
    assert all(p.requires_grad is False for p in model.parameters())
    # Ranks 4 and 2: a smaller one may be filled up, an expert's joined ones to a multiple of 8.
    assert sum(p.numel() for p in own) <= 16 / 6 * sum(s.num_params() for s in skills)


def test_the_result_is_a_model_of_the_base_s_class() -> None:
    base = llama()
    model: Any = compose(base, some_skills(base, "all"))
    assert type(model) is type(base)
    assert model.config is base.config
    weight = base.model.layers[0].self_attn.q_proj.weight
    assert model.model.layers[0].self_attn.q_proj.weight.data_ptr() == weight.data_ptr()
    assert model.model.layers[0].self_attn.q_proj.in_features == 32
    assert model.composition is composition_of(model)
    assert not model.training
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.model.layers[0].self_attn.q_proj.no_such_thing


def test_two_composed_models_of_one_base_do_not_meet() -> None:
    base, ids = own_model(), tokens()
    a, b = some_skills(base, "all", "all-linear")
    one, two = compose(base, [a], weights=[1.0]), compose(base, [b], weights=[0.5])
    first = logits_of(one, ids)
    close(logits_of(two, ids), logits_of(by_hand(base, [b], [0.5]), ids))
    assert torch.equal(logits_of(one, ids), first)
    close(first, logits_of(by_hand(base, [a], [1.0]), ids))


def test_composing_draws_no_random_numbers() -> None:
    base = own_model()
    skills = some_skills(base, "all")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    compose(base, skills, weights=[1.0])
    assert torch.equal(torch.rand(2), expected)


# --- constant weights -------------------------------------------------------------------------------------


@every_model
def test_constant_weights_equal_weights_merged_by_hand(make: Any) -> None:
    base, ids = make(), tokens()
    skills, alpha = some_skills(base, "all", "all-linear", "*"), [0.7, -0.3, 0.4]
    model = compose(base, skills, weights=alpha)
    expected = logits_of(by_hand(base, skills, alpha), ids)
    close(logits_of(model, ids), expected)
    for given in (alpha, torch.tensor(alpha), {"c": 0.4, "a": 0.7, "b": -0.3}, tuple(alpha)):
        close(logits_of(compose(base, skills), ids, weights=given), expected)
    close(
        logits_of(compose(base, skills, ["c", "a"], weights=[0.4, 0.7]), ids, weights={"a": 1.0}),
        logits_of(by_hand(base, skills[:1], [1.0]), ids),
    )


@every_model
def test_merged_is_a_plain_model(make: Any) -> None:
    base, ids = make(), tokens()
    skills, alpha = (
        some_skills(base, "all", "q_proj" if make in (llama, qwen_mixture) else "all"),
        [0.7, -0.3],
    )
    before = state_of(base)
    model = compose(base, skills, weights=alpha)
    plain = merged(model)
    assert type(plain) is type(base)
    assert list(plain.state_dict()) == list(base.state_dict())
    close(logits_of(plain, ids), logits_of(by_hand(base, skills, alpha), ids))
    close(logits_of(merged(model, {"b": 2.0}), ids), logits_of(by_hand(base, skills, [0.0, 2.0]), ids), 4e-5)
    untouched = merged(model, [0.0, 0.0])
    for ours, theirs in zip(untouched.parameters(), base.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    same_state(before, state_of(base))
    compose(plain, skills, weights=[1.0, 0.0])


def test_a_merged_model_of_tied_weights_is_saved_and_loaded_untied(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    base, ids = llama(tie_word_embeddings=True), tokens()
    skills = some_skills(base, ["embed_tokens", "q_proj"])
    plain: Any = merged(compose(base, skills, weights=[1.0]))
    expected = logits_of(by_hand(base, skills, [1.0]), ids)
    close(logits_of(plain, ids), expected)
    plain.save_pretrained(tmp_path)
    close(logits_of(LlamaForCausalLM.from_pretrained(tmp_path), ids), expected)
    # Other readers of the folder go by what it says.
    assert not plain.config.tie_word_embeddings
    assert base.config.tie_word_embeddings
    assert base.lm_head.weight is base.model.embed_tokens.weight
    # Without the embedding nothing is untied.
    still: Any = merged(compose(base, some_skills(base, "q_proj"), weights=[1.0]))
    assert still.lm_head.weight is still.model.embed_tokens.weight
    assert still.config.tie_word_embeddings


def test_our_tied_embedding_is_adapted_where_it_looks_up_and_cannot_be_merged() -> None:
    base, ids = own_model(tied=True), tokens()
    skill = random_skill(base, "a", "embedding")
    model = compose(base, [skill], weights=[1.0])
    looked_up = by_hand(base, [skill], [1.0])
    with torch.no_grad():
        expected = looked_up.hidden(ids) @ base.embedding.weight.T
    close(logits_of(model, ids), expected)
    with pytest.raises(SkillError, match="embedding cannot be merged: its weight is another layer's, too"):
        merged(model)


def test_a_weight_that_is_computed_cannot_be_merged() -> None:
    base = net()
    nn.utils.parametrizations.weight_norm(base.first)
    skill, x = random_skill(base, "a", "first"), torch.randn(4, 6)
    model = compose(base, [skill], weights=[1.0])
    with torch.no_grad():
        extra = skill.factors["first"].delta()
        close(model.first(x), base.first(x) + x @ extra.T)
    with pytest.raises(SkillError, match="first cannot be merged: its weight is computed, not stored"):
        merged(model)


def test_weights_can_be_changed_and_looked_at() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "all")
    model: Any = compose(base, skills)
    assert torch.equal(logits_of(model, ids), logits_of(base, ids))
    model.composition.set_weights({"b": 0.5})
    assert model.composition.default_weights().tolist() == [0.0, 0.5]
    close(logits_of(model, ids), logits_of(by_hand(base, skills, [0.0, 0.5]), ids))
    assert "skills=['a', 'b']" in repr(model.composition)


def test_extended_is_composed_of_one_skill_more() -> None:
    base, ids = own_model(), tokens()
    a, b, c = some_skills(base, "all", "experts", "all-linear")
    model = compose(base, [a, b], weights=[0.7, -0.3])
    more: Any = extended(model, c, 0.4)
    assert more.composition.names == ("a", "b", "c")
    close(logits_of(more, ids), logits_of(by_hand(base, [a, b, c], [0.7, -0.3, 0.4]), ids))
    close(logits_of(model, ids), logits_of(by_hand(base, [a, b], [0.7, -0.3]), ids))
    with pytest.raises(SkillError, match="two skills of the name 'a'"):
        extended(model, a)
    routed = compose(base, [a, b], router=Context(3, 2))
    with pytest.raises(SkillError, match="a router knows its skills"):
        extended(routed, c)
    with pytest.raises(SkillError, match="a router decides"):
        merged(routed)
    close(logits_of(merged(routed, [1.0, 0.0]), ids), logits_of(by_hand(base, [a], [1.0]), ids))


def test_skills_come_out_as_they_went_in() -> None:
    base = qwen_mixture()
    skills = some_skills(base, "all", ["experts", "q_proj"], "down_proj")
    for back, given in zip(skills_of(compose(base, skills)), skills, strict=True):
        assert back.name == given.name
        assert set(back.factors) == set(given.factors)
        for address, f in given.factors.items():
            found = back.factors[address]
            assert torch.equal(found.A, f.A)
            assert torch.equal(found.B, f.B)
            assert (found.scaling, found.embedding) == (f.scaling, f.embedding)
    with pytest.raises(SkillError, match="not composed"):
        skills_of(base)
    with pytest.raises(SkillError, match="not composed"):
        merged(base)


# --- a row, a token -----------------------------------------------------------------------------------------


@every_model
def test_weights_per_row_equal_a_loop_over_rows(make: Any) -> None:
    base, ids = make(), tokens(4)
    skills = some_skills(base, "all", "all-linear", "all")
    model = compose(base, skills)
    table = torch.tensor([[0.7, -0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.5], [-1.0, 0.2, 0.3]])
    expected = torch.cat(
        [logits_of(by_hand(base, skills, row.tolist()), ids[i : i + 1]) for i, row in enumerate(table)]
    )
    close(logits_of(model, ids, weights=table), expected)
    close(logits_of(model, ids, weights=table.tolist()), expected)
    rows = [{"a": 0.7, "b": -0.3}, None, {"b": 1.0, "c": 0.5}, {"a": -1.0, "b": 0.2, "c": 0.3}]
    close(logits_of(model, ids, skills=rows), expected)
    by_name = logits_of(model, ids, skills=["b", None, "a", None])
    close(by_name[:1], logits_of(by_hand(base, skills[1:2], [1.0]), ids[:1]))
    close(by_name[2:3], logits_of(by_hand(base, skills[:1], [1.0]), ids[2:3]))
    alone = logits_of(base, ids)
    close(by_name[1::2], alone[1::2], 1e-6)


def test_weights_per_token_equal_a_loop_over_tokens() -> None:
    """Nothing in this base mixes tokens, so each can be computed with weights merged for it alone."""
    base, x = net(), torch.randn(3, 5, 6)
    skills = some_skills(base, "*", "rest.1", ["first", "rest.3"])
    model = compose(base, skills)
    alpha = torch.randn(3, 5, 3)
    expected = torch.stack(
        [
            torch.stack([by_hand(base, skills, a.tolist())(u) for a, u in zip(some, row, strict=True)])
            for some, row in zip(alpha, x, strict=True)
        ]
    )
    close(model(x, weights=alpha), expected)
    close(model(x.flatten(0, 1), weights=alpha.flatten(0, 1)), expected.flatten(0, 1))
    close(model(x.flatten(0, 1), weights=alpha), expected.flatten(0, 1))


def slowly(layer: nn.Module, address: str, skills: Sequence[Skill], alpha: Tensor) -> Any:
    """A forward hook: `W_0 x_t + sum over i of alpha_ti s_i B_i A_i x_t`, token by token."""

    def hook(module: Any, args: tuple[Tensor], y: Tensor) -> Tensor:
        rows = []
        for t, u in enumerate(args[0].reshape(-1, args[0].shape[-1])):
            total = y.reshape(-1, y.shape[-1])[t]
            for i, skill in enumerate(skills):
                if address in skill.factors:
                    f = skill.factors[address]
                    total = total + alpha[t, i] * f.scaling * (f.B @ (f.A @ u))
            rows.append(total)
        return torch.stack(rows).view(y.shape)

    return layer.register_forward_hook(hook)


def test_weights_per_token_of_a_causal_language_model() -> None:
    base, ids = llama(), tokens()
    skills = some_skills(base, "all-linear", ["q_proj", "down_proj"])
    model = compose(base, skills)
    alpha = torch.randn(3, 10, 2)
    for address in {a for skill in skills for a in skill.factors}:
        slowly(base.get_submodule(address), address, skills, alpha.flatten(0, 1))
    close(logits_of(model, ids, weights=alpha), logits_of(base, ids))


def test_rows_that_cannot_be_told_apart_are_refused_and_not_mixed_up() -> None:
    base, ids = llama(), tokens(3, 10)
    model = compose(base, some_skills(base, "all"))
    for shape, message in (
        ((5, 1), r"weights for 5 rows do not fit a layer that sees shape \[3, 10\]"),
        ((30, 1), r"weights for 30 rows do not fit"),
        ((3, 5, 1), r"weights for shape \[3, 5\] do not fit a layer that sees shape \[3, 10\]"),
        ((1, 3, 10, 1), r"weights of shape \[1, 3, 10, 1\] do not fit 1 skills"),
        ((3, 2), r"weights of shape \[3, 2\] do not fit 1 skills"),
    ):
        with pytest.raises(SkillError, match=message):
            model(ids, weights=torch.ones(shape))
    with pytest.raises(SkillError, match="weights for 2 rows"):
        model(ids, skills=["a", None])
    close(logits_of(model, ids, weights=torch.ones(1, 1)), logits_of(model, ids, weights=[1.0]))


def test_positions_have_no_rows() -> None:
    """GPT-2 looks its positions up once for the whole batch: a skill there cannot go by row."""
    base, ids = LANGUAGE_MODELS["gpt2"](), tokens(5, 10)
    skill = random_skill(base, "a", ["wpe", "c_attn"])
    model = compose(base, [skill], weights=[0.5])
    close(logits_of(model, ids), logits_of(by_hand(base, [skill], [0.5]), ids))
    # 10 positions are 2 for each of 5 rows, which must not be taken for what they are not.
    with pytest.raises(SkillError, match="weights for 5 rows do not fit"):
        model(ids, weights=torch.ones(5, 1))


# --- who may be composed ------------------------------------------------------------------------------------


def test_skills_come_from_a_library_a_dict_or_a_list(tmp_path: Path) -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "experts")
    library = Library(tmp_path / "skills")
    for skill in skills:
        library.add(skill, base=base)
    expected = logits_of(by_hand(base, skills, [0.7, -0.3]), ids)
    close(logits_of(compose(base, library, ["a", "b"], weights=[0.7, -0.3]), ids), expected)
    close(logits_of(compose(base, library, ["b", "a"], weights={"a": 0.7, "b": -0.3}), ids), expected)
    renamed = {"x": skills[0], "y": skills[1]}
    model: Any = compose(base, renamed, weights=[0.7, -0.3])
    assert model.composition.names == ("x", "y")
    close(logits_of(model, ids), expected)
    other = own_model(seed=1)
    with pytest.raises(SkillError, match="learnt on another base"):
        compose(other, library, ["a"])
    compose(other, library, ["a"], force=True)
    for call, message in (
        (lambda: compose(base, library), "name the skills of the library"),
        (lambda: compose(base, library, "a"), "as a list"),
        (lambda: compose(base, library, ["zz"]), "zz"),
        (lambda: compose(base, library, ["a", "a"]), "two skills of the name 'a'"),
    ):
        with pytest.raises(SkillError, match=message):
            call()


def test_what_cannot_be_composed_is_refused_in_one_line() -> None:
    base = own_model()
    a, b = some_skills(base, "all", "all")
    composed = compose(base, [a])
    foreign = random_skill(llama(), "f", "q_proj")
    for call, message in (
        (lambda: compose(base, []), "at least one skill"),
        (lambda: compose(base, [a, a]), "two skills of the name 'a'"),
        (lambda: compose(base, [a], growing=a), "two skills of the name 'a'"),
        (lambda: compose(base, [a], ["b"]), "no skill 'b' was given"),
        (lambda: compose(base, [a], ["a", "a"]), "two skills of the name 'a'"),
        (lambda: compose(base, [a], "a"), "as a list"),
        (lambda: compose(base, [a, b], weights=[1.0]), "2 skills need as many weights, not 1"),
        (lambda: compose(base, [a], weights=[]), "1 skill needs as many weights, not 0"),
        (lambda: compose(base, [a], weights={"c": 1.0}), "no skill 'c'"),
        (lambda: compose(base, [a], weights=[float("nan")]), "must be finite"),
        (lambda: compose(base, [a], weights=[1.0], router=TopK.Config(k=1)), "not both"),
        (lambda: compose(composed, [a]), "the base is a composed model"),
        (lambda: compose(nn.Sequential(composed), [a]), "the base is a composed model"),
        (lambda: compose(base, [foreign]), "'f' adapts model.layers.0.self_attn.q_proj, where the base"),
    ):
        with pytest.raises(SkillError, match=message) as refused:
            call()
        assert "\n" not in refused.value.message
