"""Conversations: what a file of messages may hold, what is remembered, what is forgotten and said so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from expertise.errors import DataError, ExpertiseError, RecipeError, RunError
from expertise.lm import conversation as module
from expertise.lm import text as text_module
from expertise.lm.config import ModelConfig
from expertise.lm.conversation import Conversation, parse_messages
from expertise.lm.data.chat import Chat
from expertise.lm.data.tokenizer import train_tokenizer, vocab_size
from expertise.lm.generate import Step
from expertise.lm.model import LanguageModel
from expertise.lm.text import Piece

SAID = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]


def built(context: int = 256, template: str = "") -> LanguageModel:
    tokenizer = train_tokenizer(iter(["a red stone and a river " * 40]), 290)
    config = ModelConfig(
        dim=8, num_layers=1, num_heads=1, context=context, vocab_size=vocab_size(tokenizer), dense_hidden=8
    )
    model = LanguageModel(config).eval()
    model.tokenizer, model.chat = tokenizer, Chat(template)
    return model


class Parrot:
    """Stands in for sampling: says what it is told to, and keeps what the model was asked."""

    def __init__(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
        self.model, self.answer = model, answer
        self.asked: list[str] = []
        monkeypatch.setattr(text_module, "stream", self._stream)

    def _stream(self, _model: Any, tokens: torch.Tensor, *_: Any) -> Iterator[Step]:
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        self.asked.append(tokenizer.decode(tokens[0].tolist(), skip_special_tokens=False))
        for token in tokenizer.encode(self.answer).ids:
            yield Step(torch.tensor([token]))


def joined(pieces: Iterator[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# --- what a file may hold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(SAID),
        json.dumps(SAID, indent=2),
        "\ufeff" + json.dumps(SAID),
        "".join(json.dumps(message) + "\n" for message in SAID),
        "\n".join(json.dumps(message) for message in SAID) + "\r\n\r\n",
        json.dumps({"messages": SAID, "id": 3}),
    ],
)
def test_one_conversation_in_every_form(raw: str) -> None:
    assert parse_messages(raw.encode(), "f.json") == SAID


def test_one_message_alone_is_a_conversation() -> None:
    assert parse_messages(json.dumps(SAID[0]).encode(), "f.json") == SAID[:1]


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"caf\xe9", "f.json is not UTF-8"),
        (b"hello", "f.json, line 1: not valid JSON"),
        (b'[{"role": "user",}]', "f.json: not valid JSON"),
        (b'{"role": "user", "content": "a"}\nhello\n', "f.json, line 2: not valid JSON"),
        (b'{"messages": []}\n{"messages": []}\n', "line 1: a conversation of its own"),
        (b"[]\n[]\n", "f.json: not valid JSON"),
        (b"3", "f.json: a JSON int"),
        (b'{"messages": [], "tools": [{"name": "add"}]}', "descriptions of tools"),
        (b'"hello"', "f.json: a JSON str"),
        (b'[{"role": "usr", "content": "a"}]', "message 1: unknown role 'usr'"),
        (b'[{"content": "a"}]', "message 1: no field 'role'"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_holds_no_conversation_is_refused_in_one_line(raw: bytes, named: str) -> None:
    with pytest.raises(DataError) as found:
        parse_messages(raw, "f.json")
    assert named in found.value.message
    assert "\n" not in found.value.message


def test_half_a_surrogate_pair_is_refused_not_replaced() -> None:
    said = r'{"role": "user", "content": "a\ud800"}'
    for raw in (said, f"[{said}]", f"{said}\n{said}\n"):
        with pytest.raises(RecipeError, match="is not UTF-8") as found:
            parse_messages(raw.encode(), "f.json")
        assert found.value.message.startswith("f.json")


# --- turns ----------------------------------------------------------------------------------------------


def test_turns_are_remembered_with_the_system_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built()
    parrot = Parrot(model, monkeypatch, "red<|im_end|>")
    talk = Conversation(model, system="be kind", max_new_tokens=20)
    assert joined(talk.ask("one?")) == "red"
    assert joined(talk.ask("two?")) == "red"
    assert [(m["role"], m["content"]) for m in talk.messages] == [
        ("system", "be kind"),
        ("user", "one?"),
        ("assistant", "red"),
        ("user", "two?"),
        ("assistant", "red"),
    ]
    expected = Chat().prompt(talk.messages[:-1]).text
    assert parrot.asked[-1] == expected
    again = Conversation(model, talk.messages[:-1], max_new_tokens=20)
    assert joined(again.go_on()) == "red"
    assert parrot.asked[-1] == expected, "the same as with the messages given at once"


def test_a_broken_off_answer_stays_as_far_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built()
    Parrot(model, monkeypatch, "red stone and a river")
    talk = Conversation(model, max_new_tokens=20)
    pieces = talk.ask("one?")
    first = next(pieces).text
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": first}
    # Broken off before its first word, a question is as if it had never been asked.
    talk.ask("two?").close()
    unasked = talk.ask("three?")
    monkeypatch.setattr(module, "continue_text", lambda *_, **__: iter(_interrupted()))
    with pytest.raises(KeyboardInterrupt):
        next(unasked)
    assert [message["content"] for message in talk.messages] == ["one?", first]


def _interrupted() -> Iterator[Piece]:
    raise KeyboardInterrupt
    yield


def test_the_oldest_turns_are_forgotten_not_the_system_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(context=200)
    parrot = Parrot(model, monkeypatch, "red<|im_end|>")
    talk = Conversation(model, system="be kind", max_new_tokens=20)
    forgotten = []
    for number in range(4):
        joined(talk.ask(f"question {number}?"))
        forgotten.append(talk.num_forgotten)
    assert forgotten[0] == 0
    assert forgotten[-1] > 0
    assert sorted(forgotten) == forgotten
    assert "be kind" in parrot.asked[-1]
    assert "question 3?" in parrot.asked[-1]
    assert "question 0?" not in parrot.asked[-1]
    assert len(talk.messages) == 9, "what was said is kept all the same"


def test_what_never_fits_is_refused_and_taken_back() -> None:
    talk = Conversation(built(context=64), max_new_tokens=20)
    with pytest.raises(RecipeError, match="context holds 64"):
        next(talk.ask("z" * 80))
    assert talk.messages == []
    long = Conversation(built(context=64), [*SAID * 5, SAID[0]], max_new_tokens=20)
    with pytest.raises(RecipeError, match="context holds 64"):
        next(long.go_on())


def test_messages_that_need_no_answer_are_refused() -> None:
    for messages in ([], SAID):
        with pytest.raises(RecipeError, match="nothing to answer"):
            next(Conversation(built(), messages, max_new_tokens=2).go_on())


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (
            "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }};{% endif %}{% endfor %}",
            "leaves out what the system says",
        ),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{{ m.content }};{% endfor %}",
            "no system",
        ),
    ],
)
def test_a_template_that_takes_no_system_prompt_is_named(template: str, named: str) -> None:
    with pytest.raises(ExpertiseError, match=named):
        Conversation(built(template=template), system="be kind", max_new_tokens=2)
    Conversation(built(template=template), max_new_tokens=2)


def test_two_system_prompts_and_no_template_are_refused() -> None:
    system = [{"role": "system", "content": "be kind"}]
    with pytest.raises(RecipeError, match="system prompt of their own"):
        Conversation(built(), system, system="be brief", max_new_tokens=2)
    model = built()
    model.chat = None
    with pytest.raises(RunError, match="no chat template"):
        Conversation(model, max_new_tokens=2)
