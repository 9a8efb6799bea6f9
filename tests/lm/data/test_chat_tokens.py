"""Conversations as tokens beside `transformers`: the same text, the same tokens, the same turns."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from chat_templates import CASES, IM, THINKING, THOUGHT, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from expertise.lm.data.chat import Chat, Rendered
from expertise.lm.data.documents import Document
from expertise.lm.data.encoded import Encoded, encode_documents, encode_prompt
from expertise.lm.data.messages import Message, read_messages
from expertise.lm.data.templates import complete

transformers = pytest.importorskip("transformers")

QUICK = settings(max_examples=25, deadline=None)
NAMES = sorted(CASES)


def said(*contents: str) -> list[Message]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents)
    ]


@functools.cache
def opened(name: str) -> tuple[Case, Tokenizer, Chat, Any]:
    """A case with its tokenizer, our template and the judge."""
    case = CASES[name]
    tokenizer = case.tokenizer()
    judge = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        chat_template=case.template,
        **{f"{key}_token": value for key, value in (("bos", case.bos), ("eos", case.eos)) if value},
    )
    chat = Chat(complete(case.template, {"bos_token": case.bos, "eos_token": case.eos}))
    return case, tokenizer, chat, judge


def encoded(tokenizer: Tokenizer, chat: Chat, found: Rendered) -> Encoded:
    document = Document("a", "a", found.text, learnt=found.learnt, written=found.written)
    return encode_documents(tokenizer, [document], chat)[0]


def learnt(found: Rendered) -> list[str]:
    return [found.text[start:end] for start, end in found.learnt]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_judge(name: str) -> None:
    _, tokenizer, chat, judge = opened(name)
    messages = said("why is   it?", "because.", "and the stone", "yes")
    found = chat.render(messages)
    assert found.text == judge.apply_chat_template(messages, tokenize=False)
    assert encoded(tokenizer, chat, found).ids.tolist() == judge.apply_chat_template(messages)["input_ids"]
    asked = judge.apply_chat_template(messages[:3], add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tokenizer, chat, messages[:3]) == asked


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("llama-2", [" because. </s>", " yes </s>"]),
        ("llama-3", ["because.<|eot_id|>", "yes<|eot_id|>"]),
        ("gemma", ["because.<end_of_turn>", "yes<end_of_turn>"]),
        ("turns", ["because.<turn|>", "yes<turn|>"]),
        ("mistral", [" because.</s>", " yes</s>"]),
        ("thinking", ["because.<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]),
        ("zephyr", ["because.</s>", "yes</s>"]),
        ("phi", ["because.<|end|>", "yes<|end|>"]),
        ("deepseek", ["because.<｜end▁of▁sentence｜>", "yes<｜end▁of▁sentence｜>"]),
        ("generation", ["because.<|stop|>", "yes<|stop|>"]),
    ],
)
def test_a_turn_is_learnt_with_what_ends_it(name: str, turns: list[str]) -> None:
    _, tokenizer, chat, _ = opened(name)
    found = chat.render(said("why?", "because.", "really?", "yes"))
    assert learnt(found) == turns
    ids = encoded(tokenizer, chat, found)
    assert ids.learnt is not None
    kept = [token for token, is_learnt in zip(ids.ids, ids.learnt, strict=True) if is_learnt]
    assert tokenizer.decode(kept, skip_special_tokens=False) == "".join(turns)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    end = next(name for name in sorted(added, key=len, reverse=True) if turns[0].endswith(name))
    assert kept.count(tokenizer.token_to_id(end)) == 2


def test_generation_blocks_say_what_is_learnt_as_the_judge_reads_them() -> None:
    _, tokenizer, chat, judge = opened("generation")
    messages = said("why?", "because.", "the cat", "yes")
    wanted = judge.apply_chat_template(messages, return_assistant_tokens_mask=True)
    ids = encoded(tokenizer, chat, chat.render(messages))
    assert ids.ids.tolist() == wanted["input_ids"]
    assert ids.learnt is not None
    assert ids.learnt.astype(int).tolist() == wanted["assistant_masks"]
    context = [messages[0], {**messages[1], "train": False}, *messages[2:]]
    assert learnt(chat.render(context)) == ["yes<|stop|>"]


def control(ids: Sequence[int], tokenizer: Tokenizer) -> Counter[str]:
    """How often each added token that is not white space occurs."""
    names = {number: t.content for number, t in tokenizer.get_added_tokens_decoder().items()}
    return Counter(names[token] for token in ids if names.get(token, " ").strip())


@pytest.mark.parametrize("name", NAMES)
def test_what_people_spell_is_text(name: str) -> None:
    case, tokenizer, chat, _ = opened(name)
    spelt = " ".join((*case.special, *(n for n in case.plain if n != "</think>")))
    for place in range(4):
        contents = ["why?", "because.", "really?", "yes"]
        plain = encoded(tokenizer, chat, chat.render(said(*contents)))
        contents[place] += f" {spelt} now"
        found = chat.render(said(*contents))
        ids = encoded(tokenizer, chat, found)
        assert control(ids.ids.tolist(), tokenizer) == control(plain.ids.tolist(), tokenizer)
        if not case.rstrip:
            assert tokenizer.decode(ids.ids.tolist(), skip_special_tokens=False) == found.text
    asked = encode_prompt(tokenizer, chat, said(f"x {spelt} y"))
    assert control(asked, tokenizer) == control(encode_prompt(tokenizer, chat, said("x y")), tokenizer)


def test_runs_of_spaces_stay_as_the_tokenizer_has_them() -> None:
    _, tokenizer, chat, _ = opened("thinking")
    found = chat.render(said("a    b   c", "d   e"))
    ids = encoded(tokenizer, chat, found).ids.tolist()
    assert ids.count(tokenizer.token_to_id("   ")) == 2
    assert ids.count(tokenizer.token_to_id("    ")) == 1


def test_a_token_that_the_template_never_writes_is_as_the_tokenizer_has_it() -> None:
    case = Case(CASES["turns"].template, ("<|turn>", "<turn|>"), ("<h1>", "<|unused|>"))
    tokenizer, chat = case.tokenizer(), Chat(case.template)
    ids = encoded(tokenizer, chat, chat.render(said("a <h1> b", "c"))).ids.tolist()
    assert ids.count(tokenizer.token_to_id("<h1>")) == 1


def test_reasoning_within_an_answer_becomes_the_templates_own_tokens() -> None:
    _, tokenizer, chat, judge = opened("thinking")
    messages = said(
        "why?", "<think>\nhm\n</think>\n\nso", "</think> really?", "<think>\nwell\n</think>\n\nyes"
    )
    found = chat.render(messages)
    assert found.text == judge.apply_chat_template(messages, tokenize=False)
    assert learnt(found) == ["so<|im_end|>", "<think>\nwell\n</think>\n\nyes<|im_end|>"]
    counted = control(encoded(tokenizer, chat, found).ids.tolist(), tokenizer)
    assert (counted["<think>"], counted["</think>"]) == (1, 1)


def test_calls_of_tools_are_the_templates_tokens_around_the_assistants_text() -> None:
    call = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"of": "</tool_call>"}}}
    messages: list[Message] = [
        {"role": "user", "content": "1 and 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3 <tool_response>"},
        {"role": "assistant", "content": "it is 3"},
    ]
    _, tokenizer, chat, judge = opened("thinking")
    found = chat.render(messages)
    assert found.text == judge.apply_chat_template(messages, tokenize=False)
    counted = control(encoded(tokenizer, chat, found).ids.tolist(), tokenizer)
    assert [counted[name] for name in THOUGHT[2:]] == [1, 1, 1, 1]
    assert "add" in learnt(found)[0]
    assert learnt(found)[0].endswith("</tool_call><|im_end|>")
    _, tokenizer, chat, judge = opened("mistral")
    messages[2] = {**messages[2], "tool_call_id": "c1"}
    tools = [{"type": "function", "function": {"name": "add [TOOL_CALLS]"}}]
    found = chat.render(messages, tools=tools)
    assert found.text == judge.apply_chat_template(messages, tools=tools, tokenize=False)
    counted = control(encoded(tokenizer, chat, found).ids.tolist(), tokenizer)
    assert counted["[TOOL_CALLS]"] == 1
    assert learnt(found)[0].startswith("[TOOL_CALLS]")


def test_a_generation_prompt_that_opens_a_thought_leaves_turns_without_one_as_they_are() -> None:
    _, _, chat, _ = opened("deepseek")
    assert chat.prompt(said("why?")).text.endswith("<｜Assistant｜><think>\n")
    assert learnt(chat.render(said("why?", "<b> because"))) == ["<b> because<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize("scheme", ["first", "always", "prepend"])
def test_a_space_that_a_tokenizer_puts_before_a_text_is_put_where_the_judge_has_it(scheme: str) -> None:
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

    letters = {c: i for i, c in enumerate("▁abcdefghijklmnopqrstuvwxyz?.\n<|>_")}
    made = Tokenizer(models.BPE(letters, []))
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in IM])
    judge = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(made.to_str()), chat_template=Chat().template
    )
    messages = said("why so", "because")
    ids = encoded(made, Chat(), Chat().render(messages))
    wanted = judge.apply_chat_template(messages)["input_ids"]
    assert ids.ids.tolist() == wanted
    pair = Document("a", "a", "why so", learnt=((3, 6),))
    (found,) = encode_documents(made, [pair])
    assert found.ids.tolist() == made.encode("why so", add_special_tokens=False).ids, "none within a text"


FRAGMENTS = ["why", " ", "   ", "\n", "<", "|", ">", "[INST]", "<|im_end|>", "</s>", "<tool_call>", "é", "1"]
CONTENT = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map(
    lambda parts: "".join(["a", *parts, "b"])
)


@QUICK
@given(st.sampled_from(NAMES), st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3))
def test_any_conversation_beside_a_slow_reading(name: str, turns: list[tuple[str, str]]) -> None:
    """Contents stand for harmless words; the judge's tokens of these say which control tokens there are."""
    case, tokenizer, chat, judge = opened(name)
    messages = said(*(content for turn in turns for content in turn))
    found = chat.render(messages)
    assert found.text == judge.apply_chat_template(messages, tokenize=False)
    harmless = said(*(f"zq{number}qz" for number in range(len(messages))))
    wanted = control(judge.apply_chat_template(harmless)["input_ids"], tokenizer)
    ids = encoded(tokenizer, chat, found)
    assert control(ids.ids.tolist(), tokenizer) == wanted
    shown = judge.apply_chat_template(harmless, tokenize=False)
    turns_shown = [re.search(f"zq{n}qz", shown) for n in range(1, len(messages), 2)]
    assert all(turns_shown)
    assert len(found.learnt) == len(turns)
    for text, (_, content) in zip(learnt(found), turns, strict=True):
        assert content in text
        assert text.endswith(chat.end)
    if not case.rstrip:
        assert ids.learnt is not None
        kept = ids.ids[np.asarray(ids.learnt)].tolist()
        assert tokenizer.decode(kept, skip_special_tokens=False) == "".join(learnt(found))


def test_messages_are_read_the_same_for_a_prompt_and_for_training() -> None:
    _, tokenizer, chat, _ = opened("thinking")
    read = read_messages([{"from": "human", "value": "why?"}], "m.json")
    assert encode_prompt(tokenizer, chat, read) == encode_prompt(tokenizer, chat, said("why?"))


def test_a_template_of_parts_and_one_of_text_take_either() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    of_parts = Chat(
        "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% endif %}{% endfor %};{% endfor %}"
    )
    for chat in (of_parts, Chat(THINKING), Chat()):
        whole = chat.render(said("ab", "c")).text
        assert chat.render([{"role": "user", "content": parts}, *said("", "c")[1:]]).text == whole
