"""What `generate` takes: text, token ids, lists of either; what it gives is of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import RecipeError, RunError
from expertise.lm import LanguageModel, load
from expertise.lm.text import continue_text
from expertise.lm.train import train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> LanguageModel:
    run = tmp_path_factory.mktemp("prompts") / "run"
    train(small_recipe("train.steps=2"), run, lambda _line: None)
    return load(run)


def test_text_gives_text(model: LanguageModel) -> None:
    found = model.generate("the red ", 6, seed=1)
    pieces = continue_text(model, "the red ", max_new_tokens=6, seed=1)
    assert found == "the red " + "".join(piece.text for piece in pieces)
    assert len(found) > len("the red ")
    assert model.generate(["the red ", "a"], 6, seed=1) == [found, model.generate("a", 6, seed=1)]


def test_lists_of_ids_give_lists_of_ids(model: LanguageModel) -> None:
    tokens = torch.tensor([[7, 8, 9]])
    whole = model.generate(tokens, 5, seed=3)
    assert whole.shape == (1, 8)
    assert model.generate([7, 8, 9], 5, seed=3) == whole[0].tolist()
    assert torch.equal(model.generate(tokens[0], 5, seed=3), whole[0])
    several = model.generate([[7, 8, 9], [4]], 5, seed=3)
    assert several == [whole[0].tolist(), model.generate([4], 5, seed=3)]
    assert [type(token) for token in several[0]] == [int] * 8


def test_a_tensor_is_as_it_was(model: LanguageModel) -> None:
    tokens = torch.tensor([[7, 8], [9, 10]])
    found = model.generate(tokens, 4, temperature=0.0)
    assert torch.equal(found[:, :2], tokens)
    assert model.generate(tokens.tolist(), 4, temperature=0.0) == found.tolist()


def test_stop_is_text_or_ids(model: LanguageModel) -> None:
    assert model.tokenizer is not None
    greedy = model.generate([7, 8, 9], 6, temperature=0.0)
    first = greedy[3]
    assert model.generate([7, 8, 9], 6, temperature=0.0, stop=first) == greedy[:4]
    assert model.generate([7, 8, 9], 6, temperature=0.0, stop=[first]) == greedy[:4]
    text = model.tokenizer.decode([first])
    if model.tokenizer.encode(text, add_special_tokens=False).ids == [first]:
        assert model.generate([7, 8, 9], 6, temperature=0.0, stop=text) == greedy[:4]
    asked = model.tokenizer.decode([7, 8, 9])
    ids = model.tokenizer.encode(asked, add_special_tokens=False).ids
    after = model.generate(ids, 1, temperature=0.0)[-1]
    assert model.generate(asked, 6, temperature=0.0, stop=after) == asked


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "an empty list"),
        ("", "empty prompt"),
        ([[]], "an empty list"),
        ([7, "red"], "holds text"),
        ([7.5], "holds 7.5"),
        ([None], "holds null"),
        (torch.zeros(2), "whole numbers"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "of shape"),
        ([10**6], "token ids must lie in"),
        ([-1], "token ids must lie in"),
        ("caf\udce9", "the prompt .* is not UTF-8"),
        (["a", "\ud800"], "the prompt .* is not UTF-8"),
    ],
)
def test_what_is_no_prompt_is_refused(model: LanguageModel, given: Any, named: str) -> None:
    from expertise.lm.generate import Sampling
    from expertise.lm.prompts import continued

    with pytest.raises(RecipeError, match=named):
        continued(model, given, 3, Sampling())


def test_text_needs_the_tokenizer(model: LanguageModel) -> None:
    bare = LanguageModel(model.config)
    assert bare.generate([1, 2], 2, seed=0)[:2] == [1, 2]
    with pytest.raises(RunError, match="no tokenizer"):
        bare.generate("red", 2)
    with pytest.raises(RunError, match="no tokenizer"):
        bare.generate([1, 2], 2, stop="x")


def test_text_of_a_run_in_the_documented_way(tmp_path: Path, small_recipe: Callable[..., Any]) -> None:
    """What a run of documents reads before a prompt, text has too: the same as the command gives."""
    run = tmp_path / "run"
    train(small_recipe("train.steps=1", "data.pack=documents"), run, lambda _line: None)
    model = load(run)
    assert model.reads_documents
    pieces = list(continue_text(model, "red", max_new_tokens=5, seed=2))
    assert model.generate("red", 5, seed=2) == "red" + "".join(piece.text for piece in pieces)
