"""The byte-level BPE tokenizer: trained on the training text, or given as a `tokenizer.json`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expertise.errors import DataError
from expertise.runs.files import encoding_hint
from expertise.shapes import Int

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
"""The special token of a trained tokenizer, id 0."""

_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|im_end|>", "[SEP]")
_CHARACTERS_PER_TASK = 1_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train byte-level BPE: any text is encoded without loss; equal texts give equal tokenizers.

    Args:
        texts: what it is trained on.
        vocab_size: tokens at most, the end of text and 256 bytes included; pairs met once are not merged.
    """
    import tokenizers  # not needed to import expertise.lm

    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    with _one_thread_each():
        tokenizer.train_from_iterator(iter(texts), trainer)
    return plain(tokenizer)


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json`; special tokens that are spelled out in a text are read as text.

    Args:
        path: the file.

    Raises:
        DataError: it is missing or is no tokenizer.
    """
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"cannot read the tokenizer {path}: {error.strerror or error}",
            "tokenizer.path names a tokenizer.json; leave it out to train one",
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a tokenizer.json: not UTF-8", encoding_hint(raw)) from None
    try:
        return tokenizer_from(content)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", *error.hints) from None
    except Exception as error:  # the library raises bare Exception
        raise _no_tokenizer(path, (str(error).splitlines() or [""])[0]) from None


def tokenizer_from(content: str) -> tokenizers.Tokenizer:
    """The tokenizer that a `tokenizer.json` describes, with the ids that stand there.

    The library numbers added tokens anew where a vocabulary has gaps, and may give one the id of another
    token; the model was trained with those of the file.

    Raises:
        DataError: two tokens have one id, or an id that the library would change cannot be kept.
    """
    import tokenizers  # not needed to import expertise.lm

    made = tokenizers.Tokenizer.from_str(content)
    values = json.loads(content)
    model, added = values["model"], values.get("added_tokens", [])
    changed = [token for token in added if made.token_to_id(token["content"]) != token["id"]]
    own = made.get_vocab(with_added_tokens=False)
    has_gaps = bool(changed) or len(own) != max(own.values(), default=-1) + 1
    lacks_end = has_gaps and all(made.token_to_id(name) is None for name in _ENDS)
    if not changed and not lacks_end:
        return plain(made)
    if not isinstance(model.get("vocab"), dict):
        raise DataError(
            f"the id of {changed[0]['content']!r} is {changed[0]['id']}, beyond the vocabulary",
            "its model numbers tokens by their order: add the tokens in between",
        )
    names = {number: name for name, number in model["vocab"].items()}
    for token in changed:
        if names.setdefault(token["id"], token["content"]) != token["content"]:
            raise DataError(
                f"{names[token['id']]!r} and {token['content']!r} have the same id, {token['id']}"
            )
        model["vocab"][token["content"]] = token["id"]
    if lacks_end:
        model["vocab"][END_OF_TEXT] = number = (
            max([*names, *(token["id"] for token in added)], default=-1) + 1
        )
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        values["added_tokens"] = [*added, {"id": number, "content": END_OF_TEXT, **flags, "special": True}]
    return plain(tokenizers.Tokenizer.from_str(json.dumps(values)))


def end_of_text(tokenizer: tokenizers.Tokenizer) -> int:
    """The id of the token that stands between documents; added where the tokenizer has none that is known.

    Raises:
        DataError: none can be added that has an id of its own.
    """
    name = end_of_text_name(tokenizer)
    found = tokenizer.token_to_id(name)
    if found is not None:
        return found
    taken = set(tokenizer.get_vocab(with_added_tokens=True).values())
    tokenizer.add_special_tokens([name])
    found = tokenizer.token_to_id(name)
    if found is None or found in taken:
        raise DataError(
            f"the tokenizer's ids have gaps: {name} cannot be added to it", f"add {name} to its vocabulary"
        )
    return found


def end_of_text_name(tokenizer: tokenizers.Tokenizer) -> str:
    """The text of the token that `end_of_text` finds or adds."""
    return next((name for name in _ENDS if tokenizer.token_to_id(name) is not None), END_OF_TEXT)


def vocab_size(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the largest id: as many rows as an embedding needs."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
    """Encode texts on all cores, without special tokens.

    Args:
        tokenizer: from `load_tokenizer` or `train_tokenizer`.
        texts: any number, in memory at once.

    Returns:
        One int64 array of ids per text.

    Raises:
        DataError: the tokenizer has no token for a part of a text, and no unknown token.
    """

    def run(task: list[str]) -> list[Int[np.ndarray, " tokens"]]:
        try:
            encodings = tokenizer.encode_batch_fast(task, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise _no_token(tokenizer, task, error) from None
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    with _one_thread_each(), ThreadPoolExecutor(_num_cores()) as pool:
        found = [ids for task in pool.map(run, list(_tasks(texts))) for ids in task]
    special = _special(tokenizer)
    numbers = np.array(list(special), dtype=np.int64)
    for place, ids in enumerate(found):
        if len(numbers) and np.isin(ids, numbers).any():
            found[place] = _spelled_out(tokenizer, texts[place], special)
    return found


def _special(tokenizer: tokenizers.Tokenizer) -> dict[int, str]:
    """Special tokens by their ids, without the one for what is unknown: no text may give them."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    return {
        number: token.content
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content != unknown
    }


def _spelled_out(
    tokenizer: tokenizers.Tokenizer, text: str, special: dict[int, str]
) -> Int[np.ndarray, " tokens"]:
    """Encode a text that spells a special token which the model itself would make one token of.

    Such names are cut apart after their first character: models of whole words and of likely pieces (Unigram)
    find them in their vocabulary.
    """
    names = re.compile("|".join(re.escape(name) for name in sorted(special.values(), key=len, reverse=True)))
    cuts = [0, *(match.start() + 1 for match in names.finditer(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    within = without_prefix(tokenizer, at_start=True)
    ids = [
        (tokenizer if number == 0 else within).encode(piece, add_special_tokens=False).ids
        for number, piece in enumerate(pieces)
    ]
    return np.array([token for piece in ids for token in piece], dtype=np.int64)


def without_prefix(tokenizer: tokenizers.Tokenizer, at_start: bool) -> tokenizers.Tokenizer:
    """The tokenizer as it reads what does not begin a text: without the space that some put before a text.

    Args:
        tokenizer: any; it comes back as it is where it puts none.
        at_start: also leave out the space that it would put after a special token.
    """
    parts = {
        name: json.loads(part.__getstate__())
        for name in ("normalizer", "pre_tokenizer")
        if (part := getattr(tokenizer, name)) is not None
    }
    changed = {name: _further(part, at_start) for name, part in parts.items()}
    if changed == parts:
        return tokenizer
    values = json.loads(tokenizer.to_str())
    return tokenizer_from(json.dumps(values | changed))


def _further(part: dict[str, Any], at_start: bool) -> dict[str, Any] | None:
    """A normalizer or a pre-tokenizer that puts no space before a text; None: nothing else is left of it."""
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            inner = [left for one in part[key] if (left := _further(one, at_start)) is not None]
            return {**part, key: inner}
    if part["type"] == "Metaspace" and (at_start or part.get("prepend_scheme") == "first"):
        return {**part, "prepend_scheme": "never"}
    if at_start and part["type"] == "ByteLevel" and part.get("add_prefix_space"):
        return {**part, "add_prefix_space": False}
    return None if at_start and part["type"] == "Prepend" else part


def _no_token(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], error: Exception) -> DataError:
    """The error for text that a tokenizer cannot encode; the first such word is named."""
    for word in (word for text in texts for word in text.split()):
        try:
            tokenizer.encode(word, add_special_tokens=False)
        except Exception:
            return DataError(
                f"the tokenizer has no token for {word[:40]!r}, and no unknown token",
                "name one in its tokenizer.json (unk_token), or take a tokenizer that has all bytes",
            )
    return DataError(f"the tokenizer cannot encode the text: {(str(error).splitlines() or [''])[0]}")


def _tasks(texts: Sequence[str]) -> Iterator[list[str]]:
    task: list[str] = []
    size = 0
    for text in texts:
        task.append(text)
        size += len(text)
        if size >= _CHARACTERS_PER_TASK:
            yield task
            task, size = [], 0
    if task:
        yield task


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def copied(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy of a tokenizer that reads as `plain` says, so that the given one stays as it is."""
    return tokenizer_from(tokenizer.to_str())


def plain(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, made to read all of a text as text and to give each text as it is."""
    # A text may talk about "<|endoftext|>"; this setting is not part of tokenizer.json.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _no_tokenizer(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not a tokenizer.json: {reason}", "it is the file that `tokenizers` saves")


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep the library's own thread pool from starting.

    Once it has run, any later fork prints a warning; our own threads do the same work without that.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
