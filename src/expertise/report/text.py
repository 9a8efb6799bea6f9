"""Numbers and tokens as a reader wants to see them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from expertise.runs.progress import number as number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SPACE = "\u00a0"


class Piece(NamedTuple):
    """A stretch of a token: `mark` says that `text` stands for something that cannot be seen."""

    text: str
    mark: bool
    line_break: bool = False


def signed(value: Any, digits: int = 2) -> str:
    """A number whose minus is a true one, and whose nought has no sign; a dash where there is none."""
    if value is None:
        return "–"
    shown = f"{float(value):.{digits}f}".replace("-", "\u2212")
    return shown.removeprefix("\u2212") if not shown.strip("\u22120.") else shown


def compact(value: Any) -> str:
    """A count with three significant digits and a unit: `1.02 M`; a dash where there is none."""
    if value is None:
        return "–"
    for size, unit in _UNITS:
        # 999,600 would be shown as "1000 k": it takes the next unit.
        if abs(float(value)) >= 0.9995 * size:
            scaled = float(value) / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{_SPACE}{unit}"
    return f"{float(value):.3g}"


def whole(value: Any) -> str:
    """A count with its thousands set apart."""
    return "–" if value is None else f"{round(float(value)):,}"


def duration(seconds: Any) -> str:
    """Seconds as `45 s`, `2 min 11 s` or `3 h 20 min`."""
    if seconds is None:
        return "–"
    left = round(float(seconds))
    if left < 60:
        return f"{left}{_SPACE}s"
    if left < 3600:
        return f"{left // 60}{_SPACE}min {left % 60}{_SPACE}s"
    return f"{left // 3600}{_SPACE}h {left % 3600 // 60}{_SPACE}min"


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _symbol(character: str, spaces: bool) -> str | None:
    """The symbol for a character that cannot be seen, or None for one that can."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that was no UTF-8, as Python's "surrogateescape" keeps it; a page cannot be written with it.
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20:
        return {"\t": "⇥", "\r": "␍"}.get(character, chr(0x2400 + code))
    if code == 0x7F:
        return "␡"
    if character == " " and spaces:
        return "·"
    if character == "\ufffd" or (unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}):
        return "�" if character == "\ufffd" else f"\\u{code:04x}"
    return None


def pieces(token: str, spaces: bool = False) -> list[Piece]:
    """A token cut into what is shown as it is and marks for what cannot be seen.

    Args:
        token: the token's text.
        spaces: show spaces as marks too, where a token stands alone.
    """
    found: list[Piece] = []
    for character in token:
        if character == "\n":
            found.append(Piece("↵", mark=True, line_break=True))
            continue
        symbol = _symbol(character, spaces)
        if symbol is not None:
            found.append(Piece(symbol, mark=True))
        elif found and not found[-1].mark:
            found[-1] = Piece(found[-1].text + character, mark=False)
        else:
            found.append(Piece(character, mark=False))
    return found or [Piece("∅", mark=True)]


def plain(token: str) -> str:
    """A token on one line, with its marks."""
    return "".join(piece.text for piece in pieces(token, spaces=True))


def vocabulary(tokenizer: Tokenizer | None, size: int) -> list[str]:
    """The text of each token id by itself; a token that is part of a character shows the replacement sign."""
    known = set() if tokenizer is None else set(tokenizer.get_vocab(with_added_tokens=True).values())
    numbers = [number for number in range(size) if number in known]
    # Ids may have gaps, and a model more rows than its tokenizer has tokens.
    found = [f"<{number}>" for number in range(size)]
    if tokenizer is not None:
        texts = tokenizer.decode_batch([[number] for number in numbers], skip_special_tokens=False)
        for number, text in zip(numbers, texts, strict=True):
            found[number] = text
    return found
