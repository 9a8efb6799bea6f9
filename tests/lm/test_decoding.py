"""Tokens as text while they come: whole characters, nothing lost, nothing held back for ever."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from expertise.lm.data.tokenizer import train_tokenizer
from expertise.lm.decoding import Decoder

CHARACTERS = "ü∑漢🜁"


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return train_tokenizer(iter(["a red stone and a river " * 40]), 280)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """Llama's kind: words with a mark for the space, and a token for each byte."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁red", "▁a"]
    tokenizer = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = Decoder(tokenizer)
    return [*(decoder.add(token) for token in ids), decoder.rest()]


def byte_ids(tokenizer: Tokenizer, text: str | bytes) -> list[int]:
    raw = text.encode() if isinstance(text, str) else text
    found = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in raw]
    assert None not in found
    return found


def test_any_bytes_join_to_the_decoded_text(byte_level: Tokenizer) -> None:
    dice = random.Random(0)
    for _ in range(300):
        ids = [dice.randrange(100, 279) for _ in range(dice.randint(1, 12))]
        if dice.random() < 0.5:
            ids += byte_level.encode(dice.choice(CHARACTERS)).ids
        assert "".join(streamed(byte_level, ids)) == byte_level.decode(ids, skip_special_tokens=False), ids


@pytest.mark.parametrize("character", CHARACTERS)
def test_a_character_comes_whole_with_its_last_token(
    byte_level: Tokenizer, byte_fallback: Tokenizer, character: str
) -> None:
    for tokenizer, ids in (
        (byte_level, byte_level.encode(character).ids),
        (byte_fallback, byte_ids(byte_fallback, character)),
    ):
        assert len(ids) > 1
        assert streamed(tokenizer, ids) == [""] * (len(ids) - 1) + [character, ""]


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(
    byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    first = byte_level.encode("漢").ids[0]
    for tokenizer, bad in ((byte_level, first), (byte_fallback, byte_ids(byte_fallback, b"\xff")[0])):
        pieces = streamed(tokenizer, [bad] * 12)
        assert "".join(pieces) == "�" * 12
        assert all(pieces[3:12]), "at most three tokens wait"


def test_a_character_after_bad_bytes_is_whole(byte_fallback: Tokenizer) -> None:
    red = byte_fallback.token_to_id("▁red")
    for before in (b"\xff", b"\xff\xff", b"\xff" * 7):
        for character in CHARACTERS:
            ids = [red, *byte_ids(byte_fallback, before), *byte_ids(byte_fallback, character), red, red]
            assert "".join(streamed(byte_fallback, ids)) == f"red{'�' * len(before)}{character} red red"


def test_bad_bytes_after_a_character_neither_change_nor_stop_it(byte_fallback: Tokenizer) -> None:
    # Decoded as a whole, the run of bytes would be unreadable from its start.
    red = byte_fallback.token_to_id("▁red")
    ids = [*byte_ids(byte_fallback, "漢"), *byte_ids(byte_fallback, b"\xff"), red]
    assert "".join(streamed(byte_fallback, ids)) == "漢� red"


def test_ids_that_the_tokenizer_does_not_know_have_no_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("漢").ids
    assert "".join(streamed(byte_level, [400, ids[0], 400, ids[1], 400, 400, ids[2], 400])) == "漢"
