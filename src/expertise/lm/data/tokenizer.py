"""The byte-level BPE tokenizer: trained on the training text, or given as a `tokenizer.json`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expertise.errors import DataError
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
    import tokenizers  # not needed to import expertise.lm

    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot read the tokenizer {path}: {error.strerror or error}",
            "tokenizer.path names a tokenizer.json; leave it out to train one",
        ) from None
    except UnicodeDecodeError:
        raise _no_tokenizer(path, "not UTF-8") from None
    try:
        return plain(tokenizers.Tokenizer.from_str(content))
    except Exception as error:  # the library raises bare Exception
        raise _no_tokenizer(path, (str(error).splitlines() or [""])[0]) from None


def end_of_text(tokenizer: tokenizers.Tokenizer) -> int:
    """The id of the token that stands between documents; added where the tokenizer has none that is known."""
    for token in _ENDS:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer.get_vocab_size(with_added_tokens=True) - 1


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
    """

    def run(task: list[str]) -> list[Int[np.ndarray, " tokens"]]:
        encodings = tokenizer.encode_batch_fast(task, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    with _one_thread_each(), ThreadPoolExecutor(_num_cores()) as pool:
        return [ids for task in pool.map(run, list(_tasks(texts))) for ids in task]


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
    import tokenizers

    return plain(tokenizers.Tokenizer.from_str(tokenizer.to_str()))


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
