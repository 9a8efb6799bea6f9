"""Recipes: what is taken, and that every mistake is one line which names the key as the user wrote it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertise.errors import RecipeError
from expertise.lm.recipe import Recipe
from expertise.policy.data.collect import CollectConfig
from expertise.policy.learn import RECIPES
from expertise.runs import recipe as recipes

REFUSED: list[tuple[str, str, str]] = [
    # setting, what the message says, what a hint says
    ("trian.steps=3", "unknown key trian", "did you mean 'train'?"),
    ("train.stesp=3", "unknown key train.stesp", "did you mean 'steps'?"),
    ("model.always.hiden=3", "unknown key model.always.hiden", "did you mean 'hidden'?"),
    ("model.router.normalise=true", "unknown key model.router.normalise", "did you mean 'normalize'?"),
    ("model.router.k=2", "unknown key model.router.k", "known are: assumed_parts, bias_step, hidden,"),
    ("model.parts.num_part=2", "unknown key model.parts.num_part", "did you mean 'num_parts'?"),
    ("model.override=[{layers=[0], zzz=3}]", "unknown key model.override.0.zzz", "known are: k, layers,"),
    ("model.router.name=topp", "model.router.name: unknown 'topp'", "did you mean 'top_p'?"),
    ("model.router={}", "the recipe lacks model.router.name", ""),
    ("model.router.name=top_k", "unknown key model.router.p", ""),
    ("model.parts={num_parts=4}", "the recipe lacks model.parts.hidden", ""),
    ("model.parts={name='low_rank', num_parts=4}", "the recipe lacks model.parts.rank", ""),
    ("train={steps=3}", "the recipe lacks train.batch_size", ""),
    ("train.steps='3'", "train.steps: input should be a whole number, not '3'", ""),
    ("train.steps=3.0", "train.steps: input should be a whole number, not 3.0", ""),
    ("train.steps=true", "train.steps: input should be a whole number, not true", ""),
    ("optimizer.learning_rate='1e-3'", "optimizer.learning_rate: input should be a number", ""),
    ("optimizer.learning_rate=true", "optimizer.learning_rate: input should be a number", ""),
    ("train.bfloat16=1", "train.bfloat16: input should be true or false, not 1", ""),
    ("model=3", "model: input should be a table, not 3", ""),
    ("model.dim=0", "model.dim: input should be at least 1, not 0", ""),
    ("model.router.p=1.5", "model.router.p: input should be at most 1, not 1.5", ""),
    ("model.router.p=0", "model.router.p: input should be greater than 0, not 0", ""),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate", ""),
    ("optimizer.learning_rate=inf", "optimizer.learning_rate", ""),
    ("train.device=gpu", "train.device: input should be 'auto', 'cpu', 'cuda' or 'mps', not 'gpu'", ""),
    ("balance.per=batches", "balance.per: input should be 'batch' or 'sequence', not 'batches'", ""),
    ("model.override=[{layers=['a']}]", "model.override.0.layers.0: input should be a whole number", ""),
    ("train.accumulation=3", "train.batch_size (4) is not a multiple of train.accumulation (3)", ""),
    # Unions, tables with variants: the path must not show what pydantic calls a branch.
    ("data.source=1", "data.source: ", ""),
    ("model.init=foo", "model.init: ", ""),
    ("model.router.scale=foo", "model.router.scale: ", ""),
    ("model.parts=swiglu", "model.parts: ", ""),
    ("data.source=[{path='x', domian='y'}]", "unknown key data.source.0.domian", "did you mean 'domain'?"),
    ("data.source=[{path='x'}]", "the recipe lacks data.source.0.domain", ""),
    ("data.source=[{path='x', domain=3}]", "data.source.0.domain: ", ""),
    ("model.router.top_p=0.4", "unknown key model.router.top_p", "known are: assumed_parts"),
    # Values that Python's checks would let through or trip over.
    ("data.source=2024-01-01", "data.source", ""),
    ("optimizer.weight_decay=inf", "optimizer.weight_decay", ""),
    ("optimizer.beta1=1.0", "optimizer.beta1", ""),
    ("train.seed=99999999999999999999", "train.seed", ""),
    ('"a\\nb"=3', "unknown key", ""),
]


def refused(text: str, *settings: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        recipes.build(recipes.override(recipes.parse(text, "the recipe"), settings), Recipe)
    assert "\n" not in caught.value.message
    assert not any("\n" in hint for hint in caught.value.hints)
    return caught.value


@pytest.mark.parametrize(("setting", "message", "hint"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_mistake_is_one_line_that_names_the_key(
    small_values: dict[str, Any], setting: str, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.build(recipes.override(small_values, [setting]), Recipe)
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert any(found.startswith(hint) for found in caught.value.hints) or not hint


def test_the_same_mistake_in_a_file_is_found_at_its_depth(small_recipe: Callable[..., Recipe]) -> None:
    text = recipes.to_toml(small_recipe())
    assert refused(text + "\n[extra]\na = 1\n").message == "unknown key extra"
    assert refused("x = 1\n" + text).message == "unknown key x"
    assert refused(text.replace("warmup", "warm_up")).message == "unknown key optimizer.warm_up"
    assert refused("[train]\nsteps = 3\n").message.startswith("the recipe lacks ")


def test_whole_numbers_are_taken_where_fractions_are_wanted(small_recipe: Callable[..., Recipe]) -> None:
    recipe = small_recipe("optimizer.learning_rate=1", "model.router.p=1")
    assert (recipe.optimizer.learning_rate, recipe.model.router.p) == (1.0, 1.0)


@pytest.mark.parametrize("text", ["a = ", "[model", "a = 1\na = 2", "\x00", "= 3"])
def test_broken_toml_is_named(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^here\.toml is not valid TOML: ") as caught:
        recipes.parse(text, "here.toml")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^here\.toml is empty$"):
        recipes.parse(text, "here.toml")


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert recipes.find("demo") == ("demo", recipes.shipped()["demo"])
    (tmp_path / "mine.toml").write_text("a = 1\n", "utf-8")
    assert recipes.find(str(tmp_path / "mine.toml")) == ("mine", "a = 1\n")
    with pytest.raises(RecipeError, match="no recipe 'dmeo'") as caught:
        recipes.find("dmeo")
    assert caught.value.hints[0] == "did you mean 'demo'?"
    with pytest.raises(RecipeError, match="no recipe at "):
        recipes.find(str(tmp_path / "other.toml"))
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'\n")
    with pytest.raises(RecipeError, match=r"latin\.toml is not UTF-8: byte 5"):
        recipes.find(str(tmp_path / "latin.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RecipeError, match="cannot read the recipe "):
        recipes.find(str(tmp_path / "folder.toml"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("a.b=3", 3),
        ("a.b=1_000", 1000),
        ("a.b=1e-4", 1e-4),
        ("a.b=-0.5", -0.5),
        ("a.b=true", True),
        ("a.b=top_k", "top_k"),
        ("a.b='3'", "3"),
        ('a.b="x y"', "x y"),
        ("a.b=x=y", "x=y"),
        ("a.b=/a/path with spaces", "/a/path with spaces"),
        ("a.b=", ""),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=[{path='x', domain='y'}]", [{"path": "x", "domain": "y"}]),
        ("a.b={c = 1, d = 'x'}", {"c": 1, "d": "x"}),
        (" a . b = 3", 3),
        ("a.b=0123", "0123"),
    ],
)
def test_settings_are_read_as_toml_else_as_text(setting: str, value: Any) -> None:
    before = {"a": {"b": 0, "c": 1}}
    assert recipes.override(before, [setting]) == {"a": {"b": value, "c": 1}}
    assert before == {"a": {"b": 0, "c": 1}}, "the given values must not be changed"


def test_a_setting_makes_tables_and_the_last_one_wins() -> None:
    assert recipes.override({}, ["a.b.c=1", "a.b.d=2", "a.b.c=3"]) == {"a": {"b": {"c": 3, "d": 2}}}


@pytest.mark.parametrize("setting", ["x", "=3", ".a=3", "a.=3", "a..b=3", ""])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"^cannot use ") as caught:
        recipes.override({}, [setting])
    assert "=" in caught.value.hints[0]


def test_a_setting_through_a_value_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^cannot set 'a\.b\.c': 'b' is a value, not a table$"):
        recipes.override({"a": {"b": 3}}, ["a.b.c=1"])


def test_a_setting_may_not_smuggle_a_second_line_in() -> None:
    # Read as TOML the second line would be another key, and vanish.
    assert recipes.override({}, ["a=3\nb=4"]) == {"a": "3\nb=4"}


@pytest.mark.parametrize("name", sorted(recipes.shipped()))
def test_shipped_recipes_survive_being_written(name: str) -> None:
    values = recipes.parse(recipes.shipped()[name], name)
    kinds = {**RECIPES, "collect": CollectConfig}
    cls = kinds[values["kind"]] if "kind" in values else Recipe
    recipe = recipes.build(values, cls)
    assert recipes.build(recipes.parse(recipes.to_toml(recipe), name), cls) == recipe


def test_a_full_recipe_survives_being_written(small_recipe: Callable[..., Recipe]) -> None:
    recipe = small_recipe(
        r"""data.source=[{path="a \"b\" \\ ü\n.txt", domain="x"}, {hub="o/n:c", domain="y", field="f"}]""",
        "model.router={name='top_k', k=2, scale='mean-one', normalize=true, routing_dtype='activation'}",
        "model.parts={name='low_rank', num_parts=7, rank=3}",
        "model.override=[{layers=[1], num_parts=5, k=1}, {layers=[0]}]",
        "model.init=0.006",
        "model.rope_theta=1e6",
        "optimizer.schedule=cosine",
        "train.bfloat16=true",
        "balance.per=sequence",
        "balance.z=1e-10",
    )
    again = recipes.build(recipes.parse(recipes.to_toml(recipe), "text"), Recipe)
    assert again == recipe
    assert type(again.model.override[1].k) is type(None)
    assert recipes.to_toml(again) == recipes.to_toml(recipe)


def test_differences_name_every_changed_key(small_recipe: Callable[..., Recipe]) -> None:
    before = small_recipe()
    assert recipes.differences(before, small_recipe()) == {}
    after = small_recipe("train.steps=9", "model.router.p=0.5", "model.tied=true", "data.source=x")
    assert recipes.differences(before, after) == {
        "data.source": (before.data.source, "x"),
        "model.router.p": (0.4, 0.5),
        "model.tied": (False, True),
        "train.steps": (4, 9),
    }
    other = small_recipe("model.router={name='top_k', k=2}")
    changed = recipes.differences(before, other)
    assert changed["model.router.name"] == ("top_p", "top_k")
    assert changed["model.router.k"] == (None, 2)
    assert changed["model.router.p"] == (0.4, None)
    dense = dataclasses.replace(before.model, router=None, parts=None, dense_hidden=8)
    changed = recipes.differences(before, dataclasses.replace(before, model=dense))
    assert changed["model.router"][1] is None
    assert set(changed) == {"model.router", "model.parts", "model.dense_hidden"}


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("data.source=2024", 'data.source = "2024"'),
        ("data.source=true", 'data.source = "true"'),
        ("tokenizer.path=1.5", 'tokenizer.path = "1.5"'),
        ("train.steps='3'", "without quotes: train.steps = 3"),
        ("train.bfloat16='true'", "without quotes: train.bfloat16 = true"),
        ("optimizer.learning_rate='1e-3'", "without quotes: optimizer.learning_rate = 1e-3"),
        ("train.steps=3.0", "train.steps = 3"),
        ("data.domains=prose", 'data.domains = ["prose"]'),
    ],
)
def test_a_value_of_the_wrong_kind_comes_with_how_to_write_it(
    small_values: dict[str, Any], setting: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.build(recipes.override(small_values, [setting]), Recipe)
    assert hint in "\n".join(caught.value.hints)
    # The hint is advice that works: what it says is taken.
    key, value = re.search(r"([\w.]+) = (\S+?)(,|$)", caught.value.hints[0]).group(1, 2)
    recipes.build(recipes.override(small_values, [f"{key}={value}"]), Recipe)


@pytest.mark.parametrize("setting", ["train.steps='three'", "train.steps=3.5", "train.bfloat16='yes'"])
def test_no_hint_where_it_would_not_help(small_values: dict[str, Any], setting: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.build(recipes.override(small_values, [setting]), Recipe)
    assert caught.value.hints == ()


NOT_UTF8 = ["caf\udce9", "\ud800", "a\udfff b", "\n\udc80" + "x" * 500]


@pytest.mark.parametrize("text", NOT_UTF8)
@pytest.mark.parametrize("where", ["data.source", "tokenizer.path", "init", "data.template"])
def test_a_value_that_is_not_utf8_is_refused_by_its_key(
    small_values: dict[str, Any], where: str, text: str
) -> None:
    with pytest.raises(RecipeError, match="is not UTF-8") as caught:
        recipes.build(recipes.override(small_values, [f"{where}={text}"]), Recipe)
    assert caught.value.message.startswith(where)
    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()
    caught.value.message.encode()


def test_a_key_that_is_not_utf8_is_refused(small_values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="is not UTF-8"):
        recipes.build(recipes.override(small_values, ["train.caf\udce9=1"]), Recipe)


def test_what_json_escapes_is_refused_too() -> None:
    values = json.loads('{"data": {"source": [{"path": "\\udce9", "domain": "x"}]}}')
    with pytest.raises(RecipeError, match=r"data\.source\.0\.path: .* is not UTF-8"):
        recipes.build(values, Recipe)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.toml").write_text("a = 'größer'\n", encoding)
    name, text = recipes.find(str(tmp_path / "mine.toml"))
    assert recipes.parse(text, name) == {"a": "größer"}


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_a_recipe_in_another_encoding_is_told_which(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / "mine.toml").write_text("[data]\nsource = 'here'\n", encoding)
    with pytest.raises(RecipeError, match="is not UTF-8") as caught:
        recipes.find(str(tmp_path / "mine.toml"))
    assert f"-f {name} " in caught.value.hints[0]
    assert "latin1" not in caught.value.hints[0]


def test_the_home_folder_is_put_in_every_path_of_a_recipe(
    small_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/her")
    table = "data.source=[{path='~/a', domain='x'}, {hub='me/it', domain='y'}]"
    recipe = recipes.build(
        recipes.override(small_values, [table, "tokenizer.path=~/t.json", "init=~/run"]), Recipe
    )
    assert [each.path for each in recipe.data.source] == ["/home/her/a", ""]
    assert recipe.tokenizer.path == "/home/her/t.json"
    assert recipe.init == "/home/her/run"
    assert recipes.build(recipes.override(small_values, ["data.source=~"]), Recipe).data.source == "/home/her"


def test_a_path_cannot_hold_a_nul(small_values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="cannot be a path"):
        recipes.build(recipes.override(small_values, ['data.source="a\\u0000b"']), Recipe)


def test_a_recipe_that_is_not_there_has_the_nearest_one_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("a = 1\n")
    with pytest.raises(RecipeError, match="no recipe at") as caught:
        recipes.find(str(tmp_path / "mien.toml"))
    assert str(tmp_path / "mine.toml") in caught.value.hints[0]
    (tmp_path / "recipe.toml").write_text("a = 1\n")
    with pytest.raises(RecipeError, match="is a folder") as caught:
        recipes.find(str(tmp_path))
    assert f"{tmp_path / 'recipe.toml'} --out {tmp_path}" in caught.value.hints[0]
    with pytest.raises(RecipeError, match="no recipe"):
        recipes.find("x" * 300)
