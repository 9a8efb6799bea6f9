"""It works: a model trained on plain text, then on questions and answers, answers in their form."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import RunError
from expertise.lm import LanguageModel, load
from expertise.lm.data import encode_documents
from expertise.lm.data.chat import Chat
from expertise.lm.data.documents import Document
from expertise.lm.data.tokenizer import end_of_text
from expertise.lm.initial import filled_in
from expertise.lm.recipe import Recipe
from expertise.lm.text import continue_text
from expertise.lm.train import train
from expertise.runs import recipe as recipes

ANSWER = re.compile(r" ?It is \d+\.")
VALUES: dict[str, Any] = {
    "tokenizer": {"vocab_size": 400},
    "model": {
        "dim": 48,
        "num_layers": 2,
        "num_heads": 2,
        "context": 96,
        "router": {"name": "top_k", "k": 2},
        "parts": {"num_parts": 8, "hidden": 24},
        "always": {"hidden": 24},
    },
    "balance": {"expert": 0.01},
    "optimizer": {"learning_rate": 6e-3, "schedule": "constant"},
    "train": {"steps": 60, "batch_size": 8, "threads": 1, "device": "cpu"},
}


def asked(dice: random.Random) -> str:
    return f"what is {dice.randrange(40)} plus {dice.randrange(40)}?"


def trained(folder: Path, name: str, **values: Any) -> LanguageModel:
    recipe = recipes.build(filled_in({**values}, None), Recipe)
    threads = torch.get_num_threads()
    train(recipe, folder / name, lambda _: None)
    torch.set_num_threads(threads)
    return load(folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    """A base, and two that go on from it: with prompts, and with messages."""
    folder, dice = tmp_path_factory.mktemp("tuned"), random.Random(0)
    words = ["what", "is", "plus", "it", "red", "stone", "walks", "slowly", "river", "sings", "?", "."]
    text = "\n\n".join(" ".join(dice.choices([*words, *map(str, range(80))], k=14)) for _ in range(1500))
    (folder / "text.txt").write_text(text, "utf-8")
    with (folder / "prompt.jsonl").open("w") as prompts, (folder / "messages.jsonl").open("w") as messages:
        for _ in range(400):
            question, answer = asked(dice), f"It is {dice.randrange(80)}."
            prompts.write(json.dumps({"prompt": f"Q: {question}\nA:", "completion": f" {answer}"}) + "\n")
            said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            messages.write(json.dumps({"messages": said}) + "\n")
    base = {**VALUES, "data": {"source": str(folder / "text.txt")}}
    found = {"base": trained(folder, "base", **base)}
    for kind in ("prompt", "messages"):
        found[kind] = trained(
            folder,
            kind,
            init=str(folder / "base"),
            data={"source": str(folder / f"{kind}.jsonl"), "kind": kind},
            optimizer={"learning_rate": 3e-3, "schedule": "constant"},
            train=VALUES["train"] | {"steps": 80},
        )
    return found


def answers(model: LanguageModel, prompts: Sequence[str | list[dict[str, str]]]) -> list[str]:
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.5, "seed": 0}
    return ["".join(piece.text for piece in continue_text(model, prompt, **settings)) for prompt in prompts]


def as_messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def share_in_form(found: list[str]) -> float:
    return sum(ANSWER.fullmatch(answer) is not None for answer in found) / len(found)


@pytest.mark.slow
def test_a_tuned_model_answers_in_form_where_the_base_does_not(models: dict[str, LanguageModel]) -> None:
    dice = random.Random(1)
    questions = [asked(dice) for _ in range(20)]
    prompts = [f"Q: {question}\nA:" for question in questions]
    assert share_in_form(answers(models["base"], prompts)) == 0
    assert share_in_form(answers(models["prompt"], prompts)) >= 0.9
    assert (
        share_in_form(answers(models["messages"], [as_messages(question) for question in questions])) >= 0.9
    )


@pytest.mark.slow
def test_only_a_model_of_messages_can_be_chatted_with(models: dict[str, LanguageModel]) -> None:
    assert models["messages"].chat is not None
    assert models["messages"].chat.end == "<|im_end|>"
    with pytest.raises(RunError, match="no chat template: it was not trained on messages"):
        answers(models["prompt"], [as_messages("what?")])


def test_a_chat_asks_as_in_training_and_ends_at_the_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that says what it is told to, whatever the marker's tokens are."""
    from expertise.lm import text as module
    from expertise.lm.config import ModelConfig
    from expertise.lm.data.tokenizer import train_tokenizer, vocab_size
    from expertise.lm.generate import Step

    tokenizer = train_tokenizer(iter(["a red stone <|im_end|> and a river " * 40]), 290)
    config = ModelConfig(
        dim=8, num_layers=1, num_heads=1, context=512, vocab_size=vocab_size(tokenizer), dense_hidden=8
    )
    model = LanguageModel(config)
    model.tokenizer, model.chat, model.reads_documents = tokenizer, Chat(), True
    given: list[list[int]] = []

    def say(said: list[int]) -> None:
        def stream(_model: Any, tokens: torch.Tensor, *_: Any) -> Any:
            given.append(tokens[0].tolist())
            return iter([Step(torch.tensor([token])) for token in said])

        monkeypatch.setattr(module, "stream", stream)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    end = end_of_text(tokenizer)
    for said, expected in (
        ("yes.<|im_end|>\nmore", "yes."),
        ("a <|im_e|> <|im_end|>", "a <|im_e|> "),
        ("<|im_end|>", ""),
        ("half <|im_en", "half <|im_en"),
        ("no end", "no end"),
    ):
        say(ids(said))
        assert answers(model, [as_messages("why?")]) == [expected]
        say([*ids(said), end])
        assert answers(model, [as_messages("why?")]) == [expected]
    training = Chat().render([{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}])
    document = Document("", "", training.text, learnt=training.learnt, written=training.written)
    (encoded,) = encode_documents(tokenizer, [document])
    assert encoded.learnt is not None
    first = int(encoded.learnt.argmax())
    assert given[-1] == [end, *encoded.ids[:first].tolist()], "the very tokens that came before an answer"


@pytest.mark.slow
def test_a_prompt_begins_as_documents_did_and_that_is_not_shown(models: dict[str, LanguageModel]) -> None:
    base, tuned = models["base"], models["prompt"]
    assert (base.reads_documents, base.chat) == (False, None)
    assert tuned.reads_documents
    assert tuned.tokenizer is not None
    prompt, settings = "Q: what is 3 plus 4?\nA:", {"max_new_tokens": 12, "temperature": 0.0}
    pieces = list(continue_text(tuned, prompt, with_prompt=True, **settings))
    ids = tuned.tokenizer.encode(prompt, add_special_tokens=False).ids
    given = [piece for piece in pieces if not piece.generated]
    assert "".join(piece.text for piece in given) == prompt
    assert len(given) == len(ids)
    assert all(piece.parts == [2, 2] for piece in pieces[:-1])
    end = end_of_text(tuned.tokenizer)
    expected = tuned.generate(torch.tensor([[end, *ids]]), 12, temperature=0.0, stop=end)[0, len(ids) + 1 :]
    said = tuned.tokenizer.decode([token for token in expected.tolist() if token != end])
    assert "".join(piece.text for piece in pieces if piece.generated) == said
