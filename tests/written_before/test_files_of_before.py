"""Runs, skills and compositions that version 0.1.0 wrote open and compute what they computed then.

`files/` was written by the commands of commit 7bea015: two language models, two skills and three compositions
of them; critics, a policy, two skills and five compositions of these. `outputs.safetensors` holds logits and
actions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FILES = Path(__file__).parent / "files"
OUTPUTS = load_file(FILES / "outputs.safetensors")
TOKENS = torch.arange(24).view(2, 12) * 7 % 250
MODELS = ("lm", "topk")
COMPOSED = ("fixed", "routed", "layered")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in: nothing may be written to what stands in the repository."""
    copied = tmp_path / "files"
    shutil.copytree(FILES, copied)
    monkeypatch.chdir(copied)
    return copied


def test_nothing_is_left_out() -> None:
    assert set(OUTPUTS) == {*MODELS, *COMPOSED, "base"} | {path.name for path in FILES.glob("composed-*")}


@pytest.mark.parametrize("name", MODELS)
def test_language_models(name: str) -> None:
    from expertise.lm import load

    with torch.no_grad():
        torch.testing.assert_close(load(name)(TOKENS), OUTPUTS[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSED)
def test_compositions_of_skills(name: str) -> None:
    from expertise.skills import load_composed

    with torch.no_grad():
        torch.testing.assert_close(load_composed(Path(name))(TOKENS), OUTPUTS[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted({*OUTPUTS} - {*MODELS, *COMPOSED}))
def test_policies(name: str, files: Path) -> None:
    from expertise.policy import load

    observations = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    policy = load(files / name)
    torch.manual_seed(0)
    torch.testing.assert_close(torch.as_tensor(policy.act(observations)), OUTPUTS[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("library", ["skills", "policy-skills"])
def test_libraries_are_whole(library: str) -> None:
    from expertise.skills import Library

    found = Library(library).verify()
    assert found.ok
    assert len(found.skills) == 2


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.glob("composed-*")))
def test_runs_of_policies_go_on(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe, what it was learnt from and how far it came are found to be the same as before."""
    pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    from expertise.policy import load
    from expertise.policy.learn import learn, recipe_of
    from expertise.runs import recipe as recipes

    values = recipes.parse((files / name / "recipe.toml").read_text("utf-8"), name)
    old = load(files / name).state_dict()

    def moved(*changes: str) -> set[str]:
        learn(recipe_of(recipes.override(values, changes)), files / name, print)
        now = load(files / name).state_dict()
        return {key for key in old if not torch.equal(old[key], now[key])}

    assert moved() == set()
    if values["data"]:  # else the weights were given: there is nothing to learn
        found = moved("train.steps=4")
        assert found
        assert all(key.startswith("alpha.") for key in found)
        assert "step 4" in capsys.readouterr().err
