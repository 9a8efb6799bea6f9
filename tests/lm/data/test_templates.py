"""Where a chat template comes from, and what it is completed with."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from expertise.errors import DataError, RecipeError
from expertise.lm.data import DataConfig, TokenizerConfig, prepare
from expertise.lm.data.chat import CHATML, Chat
from expertise.lm.data.templates import complete, with_template
from expertise.lm.data.tokenizer import load_tokenizer, train_tokenizer
from expertise.lm.initial import filled_in
from expertise.runs import recipe as recipes

BODY = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer's folder with what others put beside it."""
    made = train_tokenizer(iter(["a red stone and a river " * 40]), 300)
    made.add_special_tokens(["<s>", "</s>"])
    folder = tmp_path / "model"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def template(tokenizer: Path | None = None, **fields: str) -> str:
    config = TokenizerConfig(path=str(tokenizer)) if tokenizer else TokenizerConfig()
    return with_template(DataConfig(kind="messages", **fields), config).template


def test_a_template_is_named_by_file_or_found_beside_the_tokenizer(tokenizer: Path, write) -> None:
    plain = BODY.replace("{{ eos_token }}", "")
    named = write("named.jinja", plain + "{# named #}")
    folder = tokenizer.parent
    assert template(tokenizer) == ""
    settings = {"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": plain}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert template(tokenizer) == plain
    assert template(template_file=str(folder / "tokenizer_config.json")) == plain
    (folder / "chat_template.jinja").write_text(plain + "{# beside #}")
    assert template(tokenizer) == plain + "{# beside #}"
    assert template(tokenizer, template_file=str(named)) == plain + "{# named #}"
    assert template(tokenizer, template=plain) == plain
    with pytest.raises(RecipeError, match="both given"):
        DataConfig(kind="messages", template="a", template_file="b")
    with pytest.raises(RecipeError, match=r"data\.template_file is for"):
        DataConfig(kind="text", template_file="b")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.jinja", None, "cannot read the chat template"),
        ("bad.jinja", b"\xff", "not UTF-8"),
        ("bad.json", b"{", "not valid JSON"),
        ("without.json", b"{}", "holds no chat template"),
        ("empty.jinja", b" \n", "holds no chat template"),
        ("syntax.jinja", b"{% for", "syntax.jinja: data.template, line 1"),
    ],
)
def test_a_file_that_is_no_template_is_named(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=name) as caught:
        template(template_file=str(tmp_path / name))
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_a_mark_of_encoding_is_no_part_of_a_template(tokenizer: Path, write) -> None:
    plain = BODY.replace("{{ eos_token }}", "")
    path = write("marked.jinja", "")
    path.write_text(plain, encoding="utf-8-sig")
    assert template(template_file=str(path)) == plain
    settings = tokenizer.parent / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": plain}), encoding="utf-8-sig")
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert template(tokenizer) == plain
    path.write_text(plain, encoding="utf-16")
    with pytest.raises(RecipeError) as caught:
        template(template_file=str(path))
    assert "UTF-16" in " ".join(caught.value.hints)
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(DataError) as refused:
        load_tokenizer(tokenizer)
    assert "UTF-16" in " ".join(refused.value.hints)


def test_names_of_tokens_are_those_of_the_tokenizer(tokenizer: Path) -> None:
    body = "{{ bos_token }}" + BODY
    both = '{% set bos_token = "" %}\n{% set eos_token = "<|endoftext|>" %}\n'
    assert template(tokenizer, template=body) == both + body, "the end of text stands before each document"
    assert template(template=body) == both + body
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tokenizer.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    whole = template(tokenizer, template=body)
    assert whole.startswith('{% set bos_token = "<s>" %}\n{% set eos_token = "</s>" %}\n')
    assert template(tokenizer, template=whole) == whole, "complete once is complete"
    assert Chat(whole).render(MESSAGES).text == "<s>user: a</s>\nassistant: b</s>\n"
    assert Chat(whole).end == "</s>"
    settings["bos_token"] = "<|endoftext|>"
    (tokenizer.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Chat(template(tokenizer, template=body)).render(MESSAGES).text.startswith("user")


def test_a_head_changes_nothing_else_that_a_template_writes() -> None:
    for body in (
        "\n  x{{ eos_token }}",
        "   {% if true %}\ny{% endif %}{{ eos_token }}",
        "{%- if true %} z{% endif %}",
    ):
        loop = "{% for m in messages %}{{ m.content }}{% endfor %}"
        whole = Chat(complete(body + loop + "{{ eos_token }}", {"eos_token": ""}))
        assert whole.render(MESSAGES).text == Chat(body + loop + "{{ eos_token }}").render(MESSAGES).text


def test_a_date_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "{{ strftime_now('%d.%m.%Y') }} {% for m in messages %}{{ m.content }};{% endfor %}"
    today = datetime.date.today()
    assert str(today.year) in template(template=body).splitlines()[0]
    whole = complete(body, date="2024-07-26")
    assert Chat(whole).render(MESSAGES).text == "26.07.2024 a;b;"
    assert complete(whole, date="2030-01-01") == whole
    inside = complete("{% macro day() %}{{ strftime_now('%Y') }}{% endmacro %}" + body, date="1999-01-02")
    assert Chat(inside).render(MESSAGES).text.startswith("02.01.1999")


def test_a_run_keeps_the_template_that_it_began_with(tokenizer: Path, write, tmp_path: Path) -> None:
    file = write("t.jinja", "{{ strftime_now('%Y') }}" + BODY)
    values = {
        "data": {"source": "c.jsonl", "kind": "messages", "template_file": str(file)},
        "tokenizer": {"path": str(tokenizer)},
    }
    run = tmp_path / "run"
    new = filled_in(values, run)["data"]
    assert "template_file" not in new
    assert new["template"].endswith("{{ strftime_now('%Y') }}" + BODY)
    old = new["template"].replace(str(datetime.date.today()), "2001-02-03")
    run.mkdir()
    (run / "recipe.toml").write_text(f"[data]\ntemplate = {json.dumps(old)}\n", "utf-8")
    assert filled_in(values, run)["data"]["template"] == old
    file.write_text(BODY + "{# changed #}")
    assert filled_in(values, run)["data"]["template"].endswith("{# changed #}"), "told as any changed key is"
    file.unlink()
    assert filled_in(values, run)["data"]["template"] == old
    del values["data"]["template_file"]
    assert filled_in(values, tmp_path / "other")["data"]["template"] == CHATML
    (tokenizer.parent / "chat_template.jinja").write_text(BODY)
    assert filled_in(values, tmp_path / "other")["data"]["template"].endswith(BODY)
    assert filled_in(values, run)["data"]["template"] == old


def test_a_recipe_of_before_means_chatml(tokenizer: Path) -> None:
    from expertise.lm.recipe import Recipe

    (tokenizer.parent / "chat_template.jinja").write_text(BODY)
    recipe = recipes.build(
        {
            "data": {"source": "c.jsonl", "kind": "messages"},
            "model": {"dim": 8, "num_layers": 1, "num_heads": 1, "context": 8, "dense_hidden": 8},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1, "batch_size": 1},
        },
        Recipe,
    )
    assert recipe.read_data.template == CHATML


def test_prepared_text_has_the_template_beside_the_tokenizer(tokenizer: Path, write) -> None:
    (tokenizer.parent / "chat_template.jinja").write_text(BODY)
    rows = [{"messages": [{**MESSAGES[0], "content": f"{i}?"}, MESSAGES[1]]} for i in range(12)]
    source = write("c.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(DataConfig(source=str(source), kind="messages"), TokenizerConfig(path=str(tokenizer)))
    assert prepared.chat is not None
    stream = prepared.stream("train")
    assert stream.learnt is not None
    end = prepared.end_of_text
    # Before each document, after the user's and after the assistant's turn; the last is learnt.
    assert (stream.tokens == end).sum() == 3 * len(stream.starts)
    assert (stream.tokens[stream.learnt] == end).sum() == len(stream.starts)


def test_text_that_a_run_keeps_is_read_with_the_same_template(tokenizer: Path, write, tmp_path: Path) -> None:
    from expertise.lm.data import evaluation_windows, held_out

    made = load_tokenizer(tokenizer)
    made.add_tokens(["[ASK]"])
    template = "{% for m in messages %}[ASK]{{ m.content }};{% endfor %}"
    rows = [{"messages": [{**MESSAGES[0], "content": f"[ASK] {i}"}, MESSAGES[1]]} for i in range(12)]
    source = write("c.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(source=str(source), kind="messages", template=template)
    prepared = prepare(data, made)
    held_out.keep(prepared, tmp_path / "kept")
    kept = held_out.kept(tmp_path / "kept", made)
    assert kept is not None
    whole = held_out.all_of(data, made, lambda _: None)
    ask = made.token_to_id("[ASK]")
    for text, side in ((prepared, "test"), (kept, "test"), (whole, "all")):
        windows = evaluation_windows(text, side, "c", 0, 64)
        assert (windows.ids == ask).sum() == 2 * windows.num_documents
    assert kept.chat is not None
    assert kept.chat.template == template
