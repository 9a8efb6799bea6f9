from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertise.errors import DataError
from expertise.lm.data import DataConfig, TokenizerConfig, load_tokenizer, prepare
from expertise.lm.data.tokenizer import encode, end_of_text, train_tokenizer, vocab_size

TEXTS = [f"the cat number {i} sat on the mat, and the dog {i * 3} did not\n" for i in range(300)]
TRAINED = train_tokenizer(TEXTS, 400)


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 400).to_str() == TRAINED.to_str()
    assert end_of_text(TRAINED) == 0
    assert vocab_size(TRAINED) <= 400


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    (ids,) = encode(TRAINED, [text])
    assert TRAINED.decode(ids.tolist()) == text


def test_every_byte_comes_back() -> None:
    text = "".join(map(chr, range(0x250))) + "<|endoftext|> 日本 😀 \x00\r\n\t "
    (ids,) = encode(TRAINED, [text])
    assert 0 not in ids
    assert TRAINED.decode(ids.tolist()) == text


def test_a_short_text_gives_a_small_vocabulary(write) -> None:
    prepared = prepare(
        DataConfig(source=str(write("a.txt", "a b c d e f g\n" * 9))), TokenizerConfig(vocab_size=4096)
    )
    assert 257 <= prepared.vocab_size < 300


def test_a_given_tokenizer_is_used(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    TRAINED.save(str(path))
    prepared = prepare(DataConfig(source=str(corpus)), TokenizerConfig(path=str(path)))
    assert prepared.tokenizer.to_str() == TRAINED.to_str()
    assert prepared.vocab_size == vocab_size(TRAINED)


@pytest.mark.parametrize("token", ["</s>", None])
def test_the_end_of_text_of_a_given_tokenizer(corpus: Path, tmp_path: Path, token: str | None) -> None:
    import tokenizers

    path = tmp_path / "given.json"
    words = ["<unk>", "The", "birds", *([token] if token else [])]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    given_one = tokenizers.Tokenizer(model)
    given_one.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    given_one.enable_truncation(4)
    given_one.save(str(path))
    prepared = prepare(DataConfig(source=str(corpus)), TokenizerConfig(path=str(path)))
    assert prepared.end_of_text == 3
    assert prepared.vocab_size == 4
    assert prepared.stream("train").tokens.max() == 3
    assert len(prepared.stream("train").tokens) > 10_000


def test_a_bad_tokenizer_file_is_named(corpus: Path, write, tmp_path: Path) -> None:
    for path, expected in [
        (tmp_path / "none.json", "cannot read the tokenizer"),
        (write("bad.json", "{}"), "is not a tokenizer.json"),
        (write("worse.json", b"\xff"), "is not a tokenizer.json"),
    ]:
        with pytest.raises(DataError, match=expected) as caught:
            prepare(DataConfig(source=str(corpus)), TokenizerConfig(path=str(path)))
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
    with pytest.raises(DataError, match="cannot read"):
        load_tokenizer(tmp_path)


def test_it_is_trained_on_the_training_text_only(write) -> None:
    head, tail = "".join(f"plain line {i}\n" for i in range(3000)), "zyzzyva zyzzyva\n" * 60
    prepared = prepare(
        DataConfig(source=str(write("a.txt", head + tail)), deduplicate=False),
        TokenizerConfig(vocab_size=2000),
    )
    assert any("zyzzyva" in text for text in prepared.documents("test", "a"))
    assert not any("zyz" in token for token in prepared.tokenizer.get_vocab())


def test_no_warning_when_the_process_forks_and_no_setting_left_behind() -> None:
    code = (
        "import os\n"
        "from expertise.lm.data.tokenizer import encode, train_tokenizer\n"
        "t = train_tokenizer(['a b c'] * 50, 300); encode(t, ['a b'] * 50)\n"
        "assert 'TOKENIZERS_PARALLELISM' not in os.environ\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    encode(t, ['a']); os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
