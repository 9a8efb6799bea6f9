from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from expertise.errors import DataError
from expertise.lm.data import DataConfig, TokenizerConfig, load_tokenizer, prepare
from expertise.lm.data.tokenizer import encode, end_of_text, tokenizer_from, train_tokenizer, vocab_size

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


# --- tokenizers of others -------------------------------------------------------------------------------


def of_words(vocab: dict[str, int], unknown: str | None = "<unk>") -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def added(number: int, content: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def with_added(made: Any, *tokens: dict[str, Any]) -> str:
    return json.dumps(json.loads(made.to_str()) | {"added_tokens": list(tokens)})


MODELS = {
    "words": lambda: tokenizers.models.WordLevel({"the": 0, "</s>": 1}, unk_token="<unk>"),
    "pieces": lambda: tokenizers.models.WordPiece({"the": 0, "</s>": 1}, unk_token="<unk>"),
    "unigram": lambda: tokenizers.models.Unigram([("the", -1.0), ("</s>", 0.0)], unk_id=None),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_text_without_a_token_or_an_unknown_one_is_one_line(name: str, corpus: Path, tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(MODELS[name]())
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match="no unknown token") as caught:
        prepare(DataConfig(source=str(corpus)), TokenizerConfig(path=str(tmp_path / "t.json")))
    assert "\n" not in caught.value.message
    assert caught.value.hints


def test_added_tokens_keep_the_ids_of_the_file() -> None:
    words = {"<unk>": 0, "a": 1, "b": 2}
    made = tokenizer_from(with_added(of_words(words), added(200, "<X>"), added(147, "<y>", False)))
    assert [made.token_to_id(name) for name in ("<X>", "<y>")] == [200, 147]
    assert encode(made, ["a <y> b"])[0].tolist() == [1, 147, 2]
    assert end_of_text(made) == 201
    assert vocab_size(made) == 202
    assert made.id_to_token(201) == "<|endoftext|>"
    assert tokenizer_from(made.to_str()).to_str() == made.to_str()
    with pytest.raises(DataError, match=r"'b' and '<X>' have the same id, 2"):
        tokenizer_from(with_added(of_words(words), added(2, "<X>")))
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0)], unk_id=0))
    with pytest.raises(DataError, match="'<X>' is 9, beyond the vocabulary"):
        tokenizer_from(with_added(unigram, added(9, "<X>")))


@pytest.mark.parametrize("words", [{"<unk>": 1, "a": 2, "b": 3}, {"<unk>": 0, "a": 1, "b": 147}])
def test_an_end_of_text_has_an_id_of_its_own_where_ids_have_gaps(
    words: dict[str, int], tmp_path: Path
) -> None:
    of_words(words).save(str(tmp_path / "t.json"))
    made = load_tokenizer(tmp_path / "t.json")
    end = end_of_text(made)
    assert end == max(words.values()) + 1
    assert vocab_size(made) == end + 1
    assert made.decode([end], skip_special_tokens=False) == "<|endoftext|>"
    assert encode(made, ["a b"])[0].tolist() == [words["a"], words["b"]]
    given = of_words({"<unk>": 1, "a": 2, "b": 3})
    with pytest.raises(DataError, match="gaps"):
        end_of_text(given)


@pytest.mark.parametrize("name", ["words", "unigram"])
def test_a_special_token_in_a_text_is_text_for_models_of_whole_words_too(name: str) -> None:
    if name == "words":
        made = of_words({"<unk>": 0, "a": 1, "</s>": 2})
    else:
        pieces = [("<unk>", 0.0), ("a", -1.0), ("</s>", 0.0), *((c, -2.0) for c in "</s> ")]
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    made.add_special_tokens(["</s>"])
    made = tokenizer_from(made.to_str())
    (ids,) = encode(made, ["a </s> a</s>"])
    assert made.token_to_id("</s>") not in ids
    if name == "unigram":
        assert "".join(made.id_to_token(int(token)) for token in ids) == "a </s> a</s>"
