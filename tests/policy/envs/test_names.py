"""Names of environments and what they refuse; needs no simulator."""

from __future__ import annotations

import sys

import pytest

from expertise.errors import ExpertiseError, MissingExtra, RecipeError
from expertise.policy.envs import FAMILIES, Name, Shift, make, names


def message(error: ExpertiseError) -> str:
    assert "\n" not in error.message
    return " | ".join([error.message, *error.hints])


@pytest.mark.parametrize(
    "text",
    [
        "dmc/walker-walk",
        "dmc/walker-walk@gravity=1.5",
        "gym/HalfCheetah-v5@gravity=0.5,mass=1.25,friction=2,strength=0.8,repeat=4",
    ],
)
def test_a_name_survives_being_taken_apart(text: str) -> None:
    assert str(Name.parse(text)) == text


def test_a_name_says_what_is_changed() -> None:
    name = Name.parse("dmc/walker-run@mass=1.5,repeat=1")
    assert (name.family, name.task, name.repeat) == ("dmc", "walker-run", 1)
    assert name.shift == Shift(mass=1.5)
    assert name.shift.changed() == ["mass"]
    assert str(Name.parse("dmc/walker-run@mass=1.23456789")) == "dmc/walker-run@mass=1.23456789"
    assert str(Name.parse("dmc/walker-run@gravity=1")) == "dmc/walker-run"  # a factor of 1 changes nothing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("walker-walk", "'walker-walk' is no name of an environment | write family/task"),
        ("dmc/", "'dmc/' is no name"),
        ("dmc/walker-walk@", "is no name"),
        ("dmc/walker-walk@gravty=2", "unknown change 'gravty' | did you mean 'gravity'?"),
        ("dmc/walker-walk@gravity=high", "gravity must be a number, not 'high'"),
        ("dmc/walker-walk@gravity", "gravity must be a number, not ''"),
        ("dmc/walker-walk@mass=0", "a shift's mass must be a positive number, not 0"),
        ("dmc/walker-walk@friction=-1", "a shift's friction must be a positive number, not -1"),
        ("dmc/walker-walk@gravity=nan", "a shift's gravity must be a positive number, not nan"),
        ("dmc/walker-walk@repeat=1.5", "repeat must be a whole number"),
        ("dmc/walker-walk@repeat=nan", "repeat must be a whole number"),
        ("dmc/walker-walk@mass=2,mass=3", "sets 'mass' twice"),
    ],
)
def test_what_is_no_name_is_refused_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Name.parse(text)
    assert expected in message(caught.value)


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        make("dcm/walker-walk")
    assert message(caught.value) == "unknown family of environments 'dcm' | did you mean 'dmc'?"


@pytest.mark.parametrize(
    ("family", "module", "target"),
    [
        ("dmc", "dm_control.suite", "make setup-policy"),
        ("gym", "gymnasium", "make setup-policy"),
        ("metaworld", "metaworld.env_dict", "make setup-policy"),
        ("bullet", "bullet_safety_gym", "make setup-safety"),
    ],
)
def test_a_missing_package_names_the_target_that_installs_it(
    family: str, module: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAMILIES[family]
    for name, loaded in list(sys.modules.items()):
        if name.startswith("expertise.policy.envs.") and hasattr(loaded, "_tasks"):
            for value in vars(loaded).values():
                getattr(value, "cache_clear", lambda: None)()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        names(family)
    assert "needs packages that are not installed" in caught.value.message
    assert any(target in hint for hint in caught.value.hints)
