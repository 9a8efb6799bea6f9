"""Examples of training data say what is in the batches, whatever the kind, the packing and the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from expertise.lm.data import IGNORED, PADDING, Batch, DataConfig, TokenizerConfig, prepare
from expertise.lm.micro import MicroBatches
from expertise.lm.show import Example, examples
from expertise.runs.config import TrainConfig

CONTEXT = 40
LONG = "".join(chr(0x4E00 + number) for number in range(100))
CASES = [
    (kind, pack, rows, accumulation)
    for kind in ("text", "prompt", "messages")
    for pack in ("stream", "documents")
    for rows, accumulation in ((1, 1), (4, 1), (4, 2), (2, 2))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show")
    rows: dict[str, list[Any]] = {"text": [], "prompt": [], "messages": []}
    for number in range(60):
        # One in five is too long, and one is so in its question alone.
        long = " and so on" * (15 if number % 5 == 0 else 0)
        question, answer = f"say {number} ü{LONG if number == 7 else '?'}", f"it is {number}{long}."
        rows["text"].append({"text": f"{question} {answer}\n"})
        rows["prompt"].append({"prompt": f"{question}\n", "completion": answer})
        turns = [("user", question), ("assistant", answer), ("user", "so?"), ("assistant", "yes")]
        rows["messages"].append({"messages": [{"role": r, "content": c} for r, c in turns]})
    for kind, lines in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def read(folder: Path) -> Callable[..., tuple[MicroBatches, Tokenizer]]:
    def made(kind: str, pack: str, rows: int, accumulation: int) -> tuple[MicroBatches, Tokenizer]:
        data = DataConfig(source=str(folder / f"{kind}.jsonl"), kind=kind, pack=pack)
        prepared = prepare(data, TokenizerConfig(vocab_size=300))
        train = TrainConfig(steps=1, batch_size=rows, accumulation=accumulation, seed=3)
        return MicroBatches(prepared, CONTEXT, train), prepared.tokenizer

    return made


def refuse_untrue(example: Example, batch: Batch, row: int) -> None:
    inputs, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    assert example.inputs == inputs
    assert [IGNORED if target is None else target for target in example.targets] == targets
    shown = [token for document in example.documents for token in document]
    assert [token.id for token in shown if token.learnt] == [t for t in targets if t != IGNORED]
    assert example.num_learnt == sum(token.learnt for token in shown)
    padding = 0 if batch.documents is None else int((batch.documents[row] == PADDING).sum())
    assert example.num_padding == padding
    # What goes in is all there, in its order: each input is shown, as a target or as read only.
    rest = iter(token.id for token in shown)
    assert all(any(token == other for other in rest) for token in inputs[: len(inputs) - padding])


@pytest.mark.parametrize(("kind", "pack", "rows", "accumulation"), CASES)
def test_examples_are_the_rows_that_training_sees(
    read: Callable[..., tuple[MicroBatches, Tokenizer]], kind: str, pack: str, rows: int, accumulation: int
) -> None:
    batches, tokenizer = read(kind, pack, rows, accumulation)
    found = examples(batches, tokenizer, 6)
    assert [(one.step, one.row) for one in found] == [(n // rows + 1, n % rows + 1) for n in range(6)]
    for number, example in enumerate(found):
        micro, row = divmod(number % rows, rows // accumulation)
        refuse_untrue(example, batches.batch(number // rows, micro), row)


@pytest.mark.parametrize(("kind", "expected"), [("prompt", "{}<|endoftext|>"), ("messages", "{}<|im_end|>")])
def test_what_is_learnt_reads_as_the_answers(
    read: Callable[..., tuple[MicroBatches, Tokenizer]], kind: str, expected: str
) -> None:
    batches, tokenizer = read(kind, "documents", 1, 1)
    found = examples(batches, tokenizer, 1000)
    texts = [
        ("".join(t.text for t in document if t.learnt), "".join(t.text for t in document))
        for example in found
        for document in example.documents
    ]
    whole = [(learnt, text) for learnt, text in texts if "and so on" not in text and LONG[:4] not in text]
    assert len(whole) > 30
    for learnt, text in whole:
        number = text.split("say ")[1].split()[0]
        assert learnt.startswith(expected.format(f"it is {number}."))
        assert f"say {number} ü" in text
        assert text.startswith("<|endoftext|>")
    assert not any(LONG[:4] in text for _, text in texts), "nothing of it would be learnt: it is left out"
    cut = [one for one in found if one.is_full and "and so on" in one.documents[-1][-1].text + "and so on"]
    assert cut, "a record that is cut shows no end"
    assert kind == "messages" or any(one.num_padding for one in found)


def test_no_more_examples_than_an_epoch_has(read: Callable[..., tuple[MicroBatches, Tokenizer]]) -> None:
    batches, tokenizer = read("prompt", "documents", 4, 2)
    found = examples(batches, tokenizer, 10**6)
    assert len({tuple(one.inputs) for one in found}) == len(found)
    assert json.loads(json.dumps(found[0].to_json()))["num_learnt"] == found[0].num_learnt
    assert examples(batches, tokenizer, 0) == []


def test_a_fault_of_the_data_would_be_seen() -> None:
    """Targets that are not what follows are shown beside it, and so is padding that is learnt."""
    import torch

    from expertise.lm.data.tokenizer import train_tokenizer
    from expertise.lm.show import _example

    tokenizer = train_tokenizer(iter(["abc"]), 300)
    a, b, c = (tokenizer.encode(letter).ids[0] for letter in "abc")
    batch = Batch(
        tokens=torch.tensor([[0, a, b, 0]]),
        targets=torch.tensor([[a, c, IGNORED, b]]),
        domains=torch.zeros(1, 4, dtype=torch.int64),
        documents=torch.tensor([[0, 0, 0, PADDING]]),
    )
    example = _example(0, 0, batch, tokenizer)
    assert [[(t.text, t.learnt) for t in d] for d in example.documents] == [
        [("<|endoftext|>", False), ("a", True), ("c", True), ("b", False)],
        [("<|endoftext|>", False), ("b", True)],
    ]
    assert example.num_padding == 0
