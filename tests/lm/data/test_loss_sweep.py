"""Exactly the intended tokens carry loss, whatever the records, the tokenizer, the template and the packing.

The expected side is a slow reading, written from the definitions and not from the code:

- a text is learnt, of a prompt and its completion the completion is, of a conversation what the assistant is
  to write after the generation prompt of its turn, up to the marker that ends it (or what `{% generation %}`
  encloses), unless the turn has `weight: 0` or `train: false`;
- a token never reaches across the border between what is learnt and what is not;
- an added token of the tokenizer is that token where the template writes it; where a person wrote it, it is
  text, unless it is an ordinary one that the template never writes;
- before each document stands an end of text; the one after it is learnt where its last token is;
- a document with nothing to learn is left out; a record that is longer than a window is cut, a text goes on;
- each window comes once in an epoch, and padding is not learnt.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from expertise.errors import DataError
from expertise.lm.data import IGNORED, PADDING, DataConfig, Prepared, evaluation_windows, prepare
from expertise.lm.micro import MicroBatches
from expertise.runs.config import TrainConfig

Token = tuple[int, bool]
"""An id, and whether it is learnt."""
Sequences = Counter[tuple[tuple[int, ...], tuple[int, ...]]]
"""How often inputs with their targets occur."""

SEED = 1
SHAPES = [(1, 1), (3, 1), (1, 3), (2, 2)]
"""Rows of a micro-batch, and micro-batches of a step."""


# --- what a row is: pieces of text, each learnt or not, and names that the template writes ---------------


@dataclass(frozen=True)
class Piece:
    """Text of a document; `name`: the template writes it, and it may be the name of a token."""

    text: str
    learnt: bool
    name: bool = False


Turn = tuple[str, str, bool]
"""Role, content, and whether it is learnt where it is the assistant's."""


def chatml(turns: list[Turn], end: str) -> Iterator[Piece]:
    for role, content, learnt in turns:
        yield from [Piece("<|im_start|>", False, True), Piece(f"{role}\n", False)]
        yield from [Piece(content, learnt), Piece("<|im_end|>", learnt, True), Piece("\n", False)]


def inst(turns: list[Turn], end: str) -> Iterator[Piece]:
    for role, content, learnt in turns:
        if role == "assistant":
            # What the generation prompt does not write has to be said by the model: the space, too.
            yield from [Piece(f" {content} ", learnt), Piece(end, learnt, True)]
        else:
            yield from [
                Piece("[INST]", False, True),
                Piece(f" {content} ", False),
                Piece("[/INST]", False, True),
            ]


def generation(turns: list[Turn], end: str) -> Iterator[Piece]:
    for role, content, learnt in turns:
        yield Piece(f"<|{role}|>", False, True)
        yield from [Piece(content, learnt), Piece("<|end|>", learnt, True)]


def words(turns: list[Turn], end: str) -> Iterator[Piece]:
    for role, content, learnt in turns:
        yield from [Piece(f"{role}: ", False), Piece(content, learnt), Piece("\n", learnt)]


@dataclass(frozen=True)
class Template:
    """A chat template, and the same in Python."""

    jinja: str
    pieces: Callable[[list[Turn], str], Iterator[Piece]]
    names: tuple[str, ...] = ()


TEMPLATES = {
    "chatml": Template("", chatml, ("<|im_start|>", "<|im_end|>")),
    "inst": Template(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
        "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
        inst,
        ("[INST]", "[/INST]"),
    ),
    "generation": Template(
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        generation,
        ("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "words": Template(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        words,
    ),
}


# --- tokenizers ----------------------------------------------------------------------------------------

PLAIN_WORDS = ["[UNK]", "a", "b", "ab", "user", "assistant", "im_end", "<|", "|>", ":", "]", "[", "INST"]


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ġ", "a"), ("u", "s"), ("us", "e"), ("i", "m"), ("<", "|")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def of_words(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


MODELS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    # Without an unknown token: a text of other letters has no token at all.
    "letters": lambda: of_words(models.BPE({"a": 0, "b": 1, "ab": 2, "<": 3}, [("a", "b")])),
    "words": lambda: of_words(
        models.WordLevel({word: i for i, word in enumerate(PLAIN_WORDS)}, unk_token="[UNK]")
    ),
    "pieces": lambda: of_words(
        models.WordPiece({word: i for i, word in enumerate([*PLAIN_WORDS, "##a", "##b"])}, unk_token="[UNK]")
    ),
    "unigram": lambda: of_words(
        models.Unigram([(word, -1.0 - i / 8) for i, word in enumerate(PLAIN_WORDS)], unk_id=0)
    ),
}


@dataclass(frozen=True)
class Added:
    """A token that is added to a tokenizer."""

    name: str
    special: bool


@dataclass
class Reader:
    """A tokenizer as a person understands it: ordinary text, and names that are one token each."""

    model: str
    ordinary: list[Added]
    """Added tokens that no template writes and that are not special: found in any text."""
    control: list[Added]
    """Others, the end of text first."""
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = frozenset(added.name for added in self.control)

    @functools.cached_property
    def full(self) -> Tokenizer:
        """The tokenizer that the product is given."""
        tokenizer = self._made()
        for added in self.control:
            tokenizer.add_tokens([AddedToken(added.name, special=added.special, normalized=False)])
        return tokenizer

    @functools.cached_property
    def text(self) -> Tokenizer:
        """The tokenizer of what people write."""
        return self._made()

    def _made(self) -> Tokenizer:
        tokenizer = MODELS[self.model]()
        for added in self.ordinary:
            tokenizer.add_tokens([AddedToken(added.name, special=False, normalized=False)])
        return tokenizer

    def read(self, pieces: list[Piece]) -> list[Token]:
        """The tokens of a document, without an end of text."""
        full, text = self.full, self.text
        found: list[Token] = []
        run, learnt = "", False
        for piece in [*pieces, Piece("", False, True)]:
            is_token = piece.name and piece.text in self.names
            if run and (is_token or piece.learnt != learnt or not piece.text):
                found += [(token, learnt) for token in text.encode(run, add_special_tokens=False).ids]
                run = ""
            if is_token:
                found.append((full.token_to_id(piece.text), piece.learnt))
            else:
                run, learnt = run + piece.text, piece.learnt if piece.text else learnt
        return found


# --- what a batch must hold ----------------------------------------------------------------------------


def stream_windows(documents: list[list[Token]], end: int, context: int) -> Sequences:
    """The windows of one long stream."""
    stream: list[Token] = []
    for tokens in documents:
        stream.append((end, bool(stream) and stream[-1][1]))
        stream += tokens
    found: Sequences = Counter()
    for start in range(0, len(stream) - context, context):
        inputs = tuple(token for token, _ in stream[start : start + context])
        targets = tuple(t if learnt else IGNORED for t, learnt in stream[start + 1 : start + context + 1])
        found[inputs, targets] += 1
    return found


def document_pieces(documents: list[list[Token]], end: int, context: int, records: bool) -> Sequences:
    """Documents by themselves, in pieces of a window at most."""
    found: Sequences = Counter()
    for tokens in documents:
        inputs = [end, *(token for token, _ in tokens)]
        targets = [t if learnt else IGNORED for t, learnt in [*tokens, (end, tokens[-1][1])]]
        for start in range(0, 1 if records else len(inputs), context):
            piece = tuple(inputs[start : start + context]), tuple(targets[start : start + context])
            if set(piece[1]) != {IGNORED}:
                found[piece] += 1
    return found


def seen(prepared: Prepared, num_windows: int, context: int, rows: int, accumulation: int) -> Sequences:
    """What the batches of one epoch hold."""
    train = TrainConfig(steps=1, batch_size=rows * accumulation, accumulation=accumulation, seed=SEED)
    batches = MicroBatches(prepared, context, train)
    left = num_windows
    found: Sequences = Counter()
    for number in itertools.count():
        batch = batches.batch(*divmod(number, accumulation))
        assert batch.tokens.shape == (rows, context)
        for row in range(min(rows, left)):
            inputs, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
            owners = [0] * context if batch.documents is None else batch.documents[row].tolist()
            for owner in set(owners):
                places = [place for place in range(context) if owners[place] == owner]
                if owner == PADDING:
                    assert {targets[place] for place in places} == {IGNORED}
                else:
                    found[tuple(inputs[p] for p in places), tuple(targets[p] for p in places)] += 1
        left -= min(rows, left)
        if not left:
            return found
    raise AssertionError


def documents_of(
    prepared: Prepared, side: str, rows: dict[str, list[Piece]], reader: Reader
) -> list[list[Token]]:
    """The documents of one side as they are to be learnt; the split is tested elsewhere."""
    found = []
    for document in prepared.records(side, *prepared.domains):
        # A text may be cut into sections.
        pieces = rows[document.id] if rows else [Piece(document.text, True)]
        assert "".join(piece.text for piece in pieces) == document.text
        tokens = reader.read(pieces)
        if any(learnt for _, learnt in tokens):
            found.append(tokens)
    return found


def refuse_other_loss(
    data: DataConfig, rows: dict[str, list[Piece]], reader: Reader, contexts: Iterable[int]
) -> None:
    """Compare all that training and evaluation see with the slow reading, for every packing and shape."""
    end = reader.full.token_to_id(reader.control[0].name)
    compared = 0
    for pack in ("stream", "documents"):
        try:
            prepared = prepare(dataclasses.replace(data, pack=pack), reader.full)
        except DataError as error:
            if not ("has no text left" in error.message or "too few to give" in error.message):
                raise
            hypothesis.reject()
        train, held_out = (documents_of(prepared, side, rows, reader) for side in ("train", "validation"))
        for context in contexts:
            if pack == "stream":
                expected = stream_windows(train, end, context)
            else:
                expected = document_pieces(train, end, context, bool(rows))
            num_windows = prepared.batches(context, 1, SEED).num_windows if expected else 0
            for shape in SHAPES:
                # Fewer windows than a batch has rows are refused.
                if num_windows >= shape[0] * shape[1]:
                    assert seen(prepared, num_windows, context, *shape) == expected, (pack, context, shape)
                    compared += 1
            refuse_other_evaluation(prepared, held_out, end, context)
    hypothesis.assume(compared)


def refuse_other_evaluation(prepared: Prepared, documents: list[list[Token]], end: int, context: int) -> None:
    """Compare what an evaluation counts, in any order: it is the learnt tokens and the ends after them."""
    windows = evaluation_windows(prepared, "validation", *prepared.domains, 0, context)
    counted = Counter(windows.targets[windows.targets != IGNORED].tolist())
    ends = [end for tokens in documents if tokens[-1][1]]
    if windows.documents is None and documents and documents[-1][-1][1]:
        ends.pop()  # nothing follows the last document of a stream
    assert counted == Counter([*(t for tokens in documents for t, learnt in tokens if learnt), *ends])


# --- at random -----------------------------------------------------------------------------------------

# Letters that every tokenizer has, letters that some have not, and names of tokens that people write.
BITS = [
    "a",
    "b",
    "ab",
    " ",
    "  ",
    "\n",
    "漢",
    "ü",
    "<|im_end|>",
    "[INST]",
    "</s>",
    "<|end|>",
    "<|endoftext|>",
    "<tool>",
]
SAID = st.lists(st.sampled_from(BITS), max_size=7).map("".join)
ANSWER = st.tuples(st.sampled_from(["a", "ab", "漢", "<|im_end|>", "</s>"]), SAID).map("".join)
CONTEXTS = st.sets(st.sampled_from([2, 3, 5, 8, 13, 40]), min_size=2, max_size=2)


@st.composite
def readers(draw: st.DrawFn, names: tuple[str, ...] = ()) -> Reader:
    end = draw(st.sampled_from(["<|endoftext|>", "</s>"]))
    ordinary = [Added(name, False) for name in ("ab", "   ") if draw(st.booleans())]
    control = [Added(end, True)]
    for name in names:
        if draw(st.integers(0, 3)):
            control.append(Added(name, draw(st.booleans())))
    if draw(st.booleans()):
        control.append(Added("<tool>", True))
    return Reader(draw(st.sampled_from(sorted(MODELS))), ordinary, control)


def sweep(number: int) -> Callable[[Any], Any]:
    """Settings of a sweep: no deadline, because a machine may be busy; a failure is shown as it is found."""
    return hypothesis.settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


Written = Callable[[list[dict[str, Any]]], tuple[str, list[str]]]


@pytest.fixture
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """`written(rows)`: a file of these rows, and the names of the documents that they become."""

    def write(rows: list[dict[str, Any]]) -> tuple[str, list[str]]:
        path = tmp_path_factory.mktemp("sweep") / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(path), [f"{path.name}:{number}" for number in range(1, len(rows) + 1)]

    return write


def few_and_many(few: int, many: int) -> Any:
    """Some examples always, and more of them among the slow tests."""
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.slow)])


@few_and_many(8, 60)
def test_all_of_a_text_is_learnt(written: Written, number: int) -> None:
    @sweep(number)
    @hypothesis.given(st.lists(SAID, min_size=8, max_size=30), readers(), CONTEXTS)
    def check(texts: list[str], reader: Reader, contexts: set[int]) -> None:
        source, _ = written([{"text": text} for text in texts])
        refuse_other_loss(DataConfig(source=source, deduplicate=False), {}, reader, contexts)

    check()


@few_and_many(8, 60)
def test_the_completion_of_a_prompt_is_learnt(written: Written, number: int) -> None:
    @sweep(number)
    @hypothesis.given(st.lists(st.tuples(SAID, ANSWER), min_size=8, max_size=30), readers(), CONTEXTS)
    def check(said: list[tuple[str, str]], reader: Reader, contexts: set[int]) -> None:
        source, names = written([{"prompt": p, "completion": c} for p, c in said])
        rows = {name: [Piece(p, False), Piece(c, True)] for name, (p, c) in zip(names, said, strict=True)}
        data = DataConfig(source=source, kind="prompt", deduplicate=False)
        refuse_other_loss(data, rows, reader, contexts)

    check()


TURN = st.tuples(SAID, ANSWER, st.sampled_from([{}, {}, {"weight": 1}, {"weight": 0}, {"train": False}]))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@few_and_many(3, 20)
def test_what_the_assistant_says_is_learnt(written: Written, number: int, name: str) -> None:
    template = TEMPLATES[name]

    @sweep(number)
    @hypothesis.given(
        st.lists(st.lists(TURN, max_size=2), min_size=8, max_size=14),
        ANSWER,
        readers(template.names),
        CONTEXTS,
    )
    def check(talks: list[list[Any]], last: str, reader: Reader, contexts: set[int]) -> None:
        messages, pieces = [], []
        for place, talk in enumerate(talks):
            # Each conversation has an answer that is learnt: one without is refused.
            given = [*talk, (f"a{place}", last, {})]
            messages.append({"messages": [message for one in given for message in as_messages(*one)]})
            turns = [turn for one in given for turn in as_turns(*one)]
            pieces.append(list(template.pieces(turns, reader.control[0].name)))
        source, names = written(messages)
        data = DataConfig(source=source, kind="messages", template=template.jinja, deduplicate=False)
        refuse_other_loss(data, dict(zip(names, pieces, strict=True)), reader, contexts)

    check()


def as_messages(question: str, answer: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"b{question}"}, {"role": "assistant", "content": answer, **keys}]


def as_turns(question: str, answer: str, keys: dict[str, Any]) -> list[Turn]:
    is_learnt = keys not in ({"weight": 0}, {"train": False})
    return [("user", f"b{question}", False), ("assistant", answer, is_learnt)]
