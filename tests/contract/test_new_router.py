"""A new router drives language models, their skills and policies: one class, one line in the registry."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from expertise.cli.main import run
from expertise.mixture import ROUTERS, Router, Routes

FILES = Path(__file__).parents[1] / "written_before/files"

RECIPE = """
data.source = "notes.txt"
tokenizer.vocab_size = 300
optimizer.learning_rate = 1e-2
evaluation.bytes_per_domain = 500
[model]
dim = 16
num_layers = 1
num_heads = 2
context = 16
router = {name = "signed", gain = 2.0}
parts = {num_parts = 3, hidden = 8}
[train]
steps = 3
batch_size = 4
threads = 1
"""


class Signed(Router):
    """Every part, with a weight between -gain and gain that a linear map of the token gives."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Its recipe."""

        name: Literal["signed"] = "signed"
        """Which router."""
        gain: float = 1.0
        """The greatest weight."""

        def check(self, num_parts: int) -> None:
            """Any number will do."""

        def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Signed:
            """The router."""
            return Signed(dim, num_parts, self.gain)

        def num_params(self, dim: int, num_parts: int) -> int:
            """Of the map."""
            return dim * num_parts

        def num_active_parts(self, num_parts: int) -> float:
            """All."""
            return float(num_parts)

        def has_logits(self) -> bool:
            """No."""
            return False

    def __init__(self, dim: int, num_parts: int, gain: float) -> None:
        super().__init__()
        self.num_parts, self.gain = num_parts, gain
        self.map = nn.Linear(dim, num_parts, bias=False)

    def forward(self, x: Tensor, context: Any = None) -> Routes:
        """Dense routes."""
        return Routes.dense(self.gain * torch.tanh(self.map(x.reshape(-1, x.shape[-1]))))


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], same_threads: None
) -> Callable[..., dict[str, Any]]:
    """`command("train", …)`: run it beside a base, skills and data of both kinds; its JSON."""
    shutil.copytree(FILES, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    monkeypatch.setenv("EXPERTISE_CACHE", str(tmp_path / "cache"))
    # The one line.
    monkeypatch.setitem(ROUTERS._table, "signed", f"{__name__}:Signed")
    monkeypatch.setitem(ROUTERS._loaded, "signed", Signed)

    def call(*arguments: str) -> dict[str, Any]:
        code = run([*arguments, "--json"])
        caught = capsys.readouterr()
        assert code == 0, caught.err
        found: dict[str, Any] = json.loads(caught.out)
        return found

    return call


def gain_of(router: Any) -> float:
    """The gain of a router that is the stranger."""
    assert isinstance(router, Signed)
    return router.gain


def trained(command: Callable[..., Any], *settings: str) -> Any:
    """The router of a small language model, which was trained, looked at and planned."""
    from expertise.lm import load

    Path("small.toml").write_text(RECIPE)
    changes = [part for setting in settings for part in ("--set", setting)]
    command("train", "small.toml", "--out", "run", *changes)
    assert set(command("evaluate", "run", "--threads", "1")["bits_per_byte"]) == {"notes", "mean"}
    command("inspect", "run", "--threads", "1")
    planned = command("plan", "run/recipe.toml")
    model = load("run")
    learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert planned["parameters_total"] == learnt
    (mixture,) = model.mixtures().values()
    return mixture.router


def test_it_drives_the_experts_of_a_language_model(command: Callable[..., Any]) -> None:
    assert gain_of(trained(command)) == 2.0


@pytest.mark.parametrize("learn", ["true", "false"])
def test_constant_weights_drive_the_experts_of_a_language_model(
    command: Callable[..., Any], learn: str
) -> None:
    router = trained(command, f'model.router={{name="fixed", values=[2.0, -1.0, 0.5], learn={learn}}}')
    moved = (router.values.detach() - torch.tensor([2.0, -1.0, 0.5])).abs()
    assert (moved.max() > 1e-3) == (learn == "true")
    assert moved.max() < 0.2, "training begins at what is given"


@pytest.mark.parametrize("reads", ["pooled", "layer"])
def test_it_weighs_skills_of_a_language_model(command: Callable[..., Any], reads: str) -> None:
    from expertise.skills import composition_of, load_composed

    names = ",".join(sorted(path.name for path in Path("skills").iterdir() if path.is_dir()))
    base = ("lm", "--library", "skills", "--skills", names, "--data", "notes.txt", "--out", "both")
    quick = ("--steps", "3", "--batch-size", "4", "--threads", "1", "--set", "router.gain=0.5")
    command("skill", "compose", *base, "--router", "signed", "--reads", reads, *quick)
    routers = composition_of(load_composed(Path("both"))).routers()
    assert routers
    assert {gain_of(router) for router in routers.values()} == {0.5}


@pytest.mark.parametrize("level", ["parameters", "noise", "actions"])
def test_it_weighs_skills_of_a_policy(command: Callable[..., Any], level: str) -> None:
    pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    from expertise.policy import load

    made = ("--data", "few.hdf5", "--run", "both")
    base = ("--base", "base", "--library", "policy-skills", "--skill", "reward", "--skill", "safety")
    quick = ("--steps", "3", "--batch-size", "4", "--threads", "1", "--set", "alpha.gain=0.5")
    command("policy", "compose", *base, "--alpha", "signed", "--level", level, *quick, *made)
    policy = load("both")
    assert gain_of(policy.get_submodule("alpha")) == 0.5
    seen = torch.randn(6, policy.observation_dim)
    weights = policy.weigh(seen)
    assert weights is not None
    assert weights.std(0).min() > 0
    assert policy.act(seen).shape == (6, policy.action_dim)
