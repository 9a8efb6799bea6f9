"""Text as pieces: they join to the decoded text, and their parts are a full forward's routes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expertise.errors import RecipeError, RunError
from expertise.lm.config import ModelConfig
from expertise.lm.data.tokenizer import end_of_text, train_tokenizer, vocab_size
from expertise.lm.model import LanguageModel
from expertise.lm.text import Piece, continue_text
from expertise.mixture import SwiGLUExperts, TopP
from expertise.mixture.mixture import recording

TEXT = "a red stone, ünder ∑ rivers — 漢字 and 🜁🜂 again; " * 3


def built(context: int = 64, **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(iter(["a red stone and a river " * 40]), 280)
    config = ModelConfig(
        dim=32,
        num_layers=2,
        num_heads=2,
        context=context,
        vocab_size=vocab_size(tokenizer),
        router=TopP.Config(p=0.5, max_parts=3),
        parts=SwiGLUExperts.Config(num_parts=4, hidden=16),
        **changes,
    )
    model = LanguageModel(config).eval()
    model.tokenizer = tokenizer
    with torch.no_grad():
        for mixture in model.mixtures().values():
            assert mixture.router is not None
            mixture.router.weight.mul_(2)
    return model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return built()


def tokens_of(model: LanguageModel, text: str, **settings: Any) -> torch.Tensor:
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text, add_special_tokens=False).ids
    return model.generate(torch.tensor([ids]), stop=end_of_text(model.tokenizer), **settings)


def pieces_of(model: LanguageModel, text: str, **settings: Any) -> list[Piece]:
    return list(continue_text(model, text, with_prompt=True, **settings))


@pytest.mark.parametrize("prompt", ["a red stone", "ü", "漢字 🜁", "red � stone", "🜁🜂" * 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pieces_join_to_the_decoded_text(model: LanguageModel, prompt: str, seed: int) -> None:
    # At a high temperature tokens are bytes at random: characters break off in the middle.
    settings = {"max_new_tokens": 25, "temperature": 5.0, "seed": seed}
    assert model.tokenizer is not None
    ids = tokens_of(model, prompt, **settings)[0].tolist()
    end = end_of_text(model.tokenizer)
    whole = model.tokenizer.decode([i for i in ids if i != end], skip_special_tokens=False)
    pieces = pieces_of(model, prompt, **settings)
    assert "".join(piece.text for piece in pieces) == whole
    generated = list(continue_text(model, prompt, **settings))
    assert generated == [piece for piece in pieces if piece.generated]
    assert len([piece for piece in pieces if not piece.generated]) == len(
        model.tokenizer.encode(prompt, add_special_tokens=False).ids
    )


def test_a_character_comes_with_its_last_token(model: LanguageModel) -> None:
    pieces = pieces_of(model, "漢", max_new_tokens=1, temperature=0.0)
    assert [piece.text for piece in pieces if not piece.generated] == ["", "", "漢"]


@pytest.mark.parametrize("prompt", ["a red stone and", "ü stone"])
def test_parts_of_a_piece_are_the_routes_of_its_token(model: LanguageModel, prompt: str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0}
    tokens = tokens_of(model, prompt, **settings)
    pieces = pieces_of(model, prompt, **settings)
    with recording(model) as mixtures, torch.no_grad():
        model(tokens)
    counts = [m.last_routes.parts_per_token().tolist() for m in mixtures if m.last_routes is not None]
    expected = [list(token) for token in zip(*counts, strict=True)]
    assert len({tuple(token) for token in expected}) > 1
    assert [piece.parts for piece in pieces[:-1]] == expected[: len(pieces) - 1]
    assert pieces[-1].parts == [], "the last token was never read"


def test_pieces_go_on_beyond_the_context() -> None:
    model = built(context=8)
    pieces = pieces_of(model, "a red", max_new_tokens=20, temperature=0.0)
    assert sum(piece.generated for piece in pieces) == 20
    assert all(len(piece.parts) == 2 for piece in pieces[:-1])


def test_the_end_of_text_ends_it_and_is_not_shown() -> None:
    model = built()
    assert model.tokenizer is not None
    end = end_of_text(model.tokenizer)
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        model.head_weight.zero_()
        model.head_weight[end] = 100.0
        for block in model.blocks:
            for parameter in block.parameters():
                if parameter.ndim > 1:
                    parameter.zero_()
    pieces = pieces_of(model, "a red", max_new_tokens=9, temperature=0.0)
    assert "".join(piece.text for piece in pieces) == "a red"
    assert all(piece.parts for piece in pieces)


def test_what_was_left_open_when_it_ended_is_not_swallowed(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertise.lm import text as module
    from expertise.lm.generate import Step

    assert model.tokenizer is not None
    half = model.tokenizer.encode("ü", add_special_tokens=False).ids[0]
    says = [half, end_of_text(model.tokenizer)]
    monkeypatch.setattr(module, "stream", lambda *_: iter([Step(torch.tensor([t])) for t in says]))
    monkeypatch.setattr(module, "_counts", lambda _, number: [[1, 1]] * number)
    pieces = pieces_of(model, "a", max_new_tokens=9)
    assert "".join(piece.text for piece in pieces) == model.tokenizer.decode(
        [*model.tokenizer.encode("a").ids, half]
    )


def test_a_stop_of_one_token_ends_it(model: LanguageModel) -> None:
    assert model.tokenizer is not None
    start = len(model.tokenizer.encode("a red", add_special_tokens=False).ids)
    settings: dict[str, Any] = {"max_new_tokens": 20, "seed": 0}
    new = tokens_of(model, "a red", **settings)[0, start:].tolist()
    # The first letter that was said is asked for as the stop (bytes of other characters cannot be typed).
    at = next(i for i, token in enumerate(new) if i and model.tokenizer.decode([token]).isalpha())
    stop = model.tokenizer.decode([new[at]])
    pieces = pieces_of(model, "a red", stop=stop, **settings)
    assert "".join(p.text for p in pieces if p.generated) == model.tokenizer.decode(new[: new.index(new[at])])
    with pytest.raises(RecipeError, match=r"stop 'zzz' is 3 tokens, it must be one"):
        pieces_of(model, "a", max_new_tokens=1, stop="zzz")


def test_what_cannot_be_continued_is_refused(model: LanguageModel) -> None:
    with pytest.raises(RecipeError, match="an empty prompt"):
        pieces_of(model, "", max_new_tokens=1)
    with pytest.raises(RecipeError, match="the model's context holds 64"):
        pieces_of(model, "z" * 65, max_new_tokens=1)
    mute = built()
    mute.tokenizer = None
    with pytest.raises(RunError, match="has no tokenizer"):
        pieces_of(mute, "a", max_new_tokens=1)


def test_a_tokenizer_that_marks_spaces_keeps_them(model: LanguageModel) -> None:
    """Llama's kind: a word begins with a mark whose first one is dropped by decoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<|endoftext|>", "▁a", "▁red", "▁stone", "<unk>"]
    spaced = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    spaced.decoder = decoders.Metaspace()
    other = built()
    other.tokenizer = spaced
    pieces = pieces_of(other, "a red stone", max_new_tokens=1, temperature=0.0)
    assert "".join(piece.text for piece in pieces[:3]) == "a red stone"
