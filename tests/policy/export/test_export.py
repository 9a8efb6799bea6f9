"""Policies without PyTorch: the NumPy example and ONNX act like the policy, or the policy is refused."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expertise.errors import ExpertiseError, MissingExtra, RecipeError, SkillError
from expertise.mixture import Router
from expertise.policy import (
    ComposedPolicy,
    Critics,
    DiffusionConfig,
    DiffusionPolicy,
    Policy,
    PolicyConfig,
    PolicyTask,
)
from expertise.policy.alpha import ALPHA
from expertise.policy.baselines.actions import ActionComposition
from expertise.policy.baselines.direct import DirectConfig
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.export import FORMATS, describe, export_policy
from expertise.policy.growing import GrowingPolicy, GrowthConfig
from expertise.policy.network import NETWORKS, Denoiser, PlainNetwork
from expertise.runs.config import TrainConfig
from expertise.runs.files import sha256_of
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import all_targets

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "act_numpy.py"
WIDTH, ACTION, STATES = 7, 3, 24
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example of the documentation, as a reader would import it."""
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 60
    spec = importlib.util.spec_from_file_location("act_numpy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seen(states: int = STATES) -> torch.Tensor:
    return torch.randn(states, WIDTH, generator=torch.Generator().manual_seed(2)) * 3 + 1


def base_of(network: str = "mlp", **fields: Any) -> DiffusionPolicy:
    """A policy that has learnt a little, on a scale of its own.

    A new network says of noise what comes; the sampler blows up the rounding of that more than tenfold, so
    that PyTorch's own actions are 1e-5 (mlp) to 3e-5 (residual) off those of float64. Twenty steps are enough
    to bring that below 2e-6.
    """
    return copy.deepcopy(_learnt(network, tuple(fields.items())))


@functools.cache
def _learnt(network: str, fields: tuple[tuple[str, Any], ...]) -> DiffusionPolicy:
    policy, states = fresh(network, **dict(fields)), seen(1000)
    dice = torch.Generator().manual_seed(4)
    actions = torch.tanh(policy.scale(states)[:, :ACTION] + torch.randn(1000, ACTION, generator=dice) * 0.2)
    train = TrainConfig(steps=30, batch_size=128, device="cpu")
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=1e-3)
    task = PolicyTask(policy, states, actions, train)
    for step in range(train.steps):
        task.losses(step, 0, True).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.acting.load_state_dict(policy.network.state_dict())
    return policy.eval()


def fresh(network: str = "mlp", **fields: Any) -> DiffusionPolicy:
    """A policy with new weights, its biases not zero."""
    torch.manual_seed(0)
    policy = PolicyConfig(network=NETWORKS[network].Config(), **fields).build(WIDTH, ACTION)
    policy.scale.fit(seen(100))
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    policy.acting.load_state_dict(policy.network.state_dict())
    return policy.eval()


def tolerance(expected: np.ndarray) -> float:
    """Of actions within ±1; where nothing bounds them, in proportion."""
    return TOLERANCE * max(1.0, float(np.abs(expected).max()))


def skill_of(base: DiffusionPolicy, name: str, rank: int = 2, only: str = "") -> Skill:
    """A skill over all layers, or over those whose address has `only` in it."""
    dice = torch.Generator().manual_seed(sum(name.encode()))
    factors = {
        address: Factors(
            A=torch.randn(rank, target.in_features, generator=dice) * target.in_features**-0.5,
            B=torch.randn(target.out_features, rank, generator=dice) * 0.1,
            scaling=float(rank),
        )
        for address, target in all_targets(base.acting).items()
        if only in address
    }
    return Skill(name=name, factors=factors)


def stirred(policy: Policy) -> Policy:
    """alpha that differs from state to state."""
    alpha = policy.get_submodule("alpha")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in alpha.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return policy.eval()


def composed(network: str = "mlp", kind: str = "context", **fields: Any) -> Policy:
    base = base_of(network, **fields)
    skills = [skill_of(base, "walk"), skill_of(base, "run", rank=3)]
    config = {
        "context": ALPHA.config("context", start=[1.0, 0.5]),
        "fixed": ALPHA.config("fixed", values=[0.7, -0.4]),
        "top_p": ALPHA.config("top_p", p=0.6, scale=1.5),
        "top_p of 1": ALPHA.config("top_p", p=1.0),
        "all of something": ALPHA.config("top_p", p=0.5, nothing=False, hidden=[6]),
        "softmax": ALPHA.config(squash="softmax", hidden=[6]),
    }[kind]
    return stirred(ComposedPolicy(base, skills, config))


def over_some_layers() -> Policy:
    base = base_of("residual")
    skills = [skill_of(base, "walk", only="blocks"), skill_of(base, "run"), skill_of(base, "up", only="up")]
    return stirred(ComposedPolicy(base, skills, ALPHA.config()))


def members() -> list[Any]:
    return [base_of(), composed()]


CASES: dict[str, Callable[[], Policy]] = {
    "base": base_of,
    "base, residual": lambda: base_of("residual"),
    "no bound": lambda: composed(diffusion=DiffusionConfig(clip=0.0, temperature=0.5, num_steps=3)),
    "composed": composed,
    "composed, residual": lambda: composed("residual"),
    "fixed": lambda: composed(kind="fixed"),
    "top-p": lambda: composed(kind="top_p"),
    "top-p, residual": lambda: composed("residual", "top_p"),
    "top-p of 1": lambda: composed(kind="top_p of 1"),
    "top-p without nothing": lambda: composed(kind="all of something"),
    "softmax": lambda: composed(kind="softmax"),
    "some layers": over_some_layers,
    "nsec": lambda: stirred(NoiseComposition(members(), ["base", "walk"], ALPHA.config())),
}
"""What the example acts with."""

FURTHER: dict[str, Callable[[], Policy]] = {
    "asec": lambda: stirred(ActionComposition(members(), ["base", "walk"], ALPHA.config())),
    "direct": lambda: DirectConfig().build(WIDTH, ACTION).eval(),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numpy_example_acts_like_the_policy(case: str, example: ModuleType, tmp_path: Path) -> None:
    policy = CASES[case]()
    facts = export_policy(policy, tmp_path / "out", "safetensors")
    noise = policy.draw(STATES, 1, torch.Generator().manual_seed(1))
    expected = policy.act(seen(), noise=noise).numpy()
    acted = example.Policy(tmp_path / "out").act(seen().numpy(), noise.numpy())
    assert acted.dtype == np.float32
    np.testing.assert_allclose(acted, expected, atol=tolerance(expected), rtol=0)
    assert np.ptp(expected, axis=0).min() > 0.1, "else this shows nothing"
    assert facts["files"]["export.json"] == sha256_of(tmp_path / "out" / "export.json")
    assert facts["numbers"] == sum(array.size for array in describe(policy).arrays.values())


@pytest.fixture
def make_wide_critics() -> Callable[[], Critics]:
    """Both critics, with random weights, for these widths."""
    from expertise.policy import CriticsConfig, RewardCriticConfig, SafetyCriticConfig

    def make() -> Critics:
        torch.manual_seed(1)
        config = CriticsConfig(reward=RewardCriticConfig(hidden=[16]), safety=SafetyCriticConfig(hidden=[16]))
        critics = Critics(config, WIDTH, ACTION)
        critics.scale.fit(seen(100))
        for module in critics.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.bias)
        return critics

    return make


@pytest.mark.parametrize("case", ["base", "composed", "nsec"])
@pytest.mark.parametrize("pick", ["max-q", "min-qc"])
def test_the_numpy_example_takes_the_candidate_that_the_critic_wants(
    case: str, pick: str, make_wide_critics: Callable[[], Critics], example: ModuleType, tmp_path: Path
) -> None:
    policy = CASES[case]()
    policy.attach(make_wide_critics())
    policy.num_candidates, policy.pick = 5, pick
    export_policy(policy, tmp_path / "out", "safetensors")
    opened = example.Policy(tmp_path / "out")
    for states, candidates in ((STATES, 5), (1, 16), (3, 1)):
        noise = policy.draw(states, candidates, torch.Generator().manual_seed(1))
        expected = policy.act(seen(states), noise=noise).numpy()
        acted = opened.act(seen(states).numpy(), noise.numpy())
        np.testing.assert_allclose(acted, expected, atol=TOLERANCE, rtol=0)
    noise = policy.draw(STATES, 5, torch.Generator().manual_seed(1))
    first, chosen = (policy.act(seen(), noise=noise, pick=name) for name in ("first", pick))
    assert not torch.equal(first, chosen), "else this shows nothing"


@pytest.mark.parametrize("case", ["asec", "direct", "onnx"])
def test_the_numpy_example_says_what_it_does_not_act_with(
    case: str, example: ModuleType, tmp_path: Path
) -> None:
    if case == "onnx":
        pytest.importorskip("onnx", reason="`make setup-policy` installs it")
        export_policy(base_of(), tmp_path / "out", "onnx")
    else:
        export_policy(FURTHER[case](), tmp_path / "out", "safetensors")
    with pytest.raises(
        AssertionError, match="takes exports --to safetensors, of version 1, not of kind asec"
    ):
        example.Policy(tmp_path / "out")


def session(path: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="`make setup-policy` installs it")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", [*CASES, *FURTHER])
def test_onnx_acts_like_the_policy_for_any_number_of_states(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="`make setup-policy` installs it")
    policy = {**CASES, **FURTHER}[case]()
    facts = export_policy(policy, tmp_path / "out", "onnx")
    opened = session(tmp_path / "out" / "policy.onnx")
    for states in (1, STATES):
        noise = policy.draw(states, 1, torch.Generator().manual_seed(1))
        given = {"observations": seen(states).numpy(), "noise": noise.numpy()}
        actions, *alpha = opened.run(None, given)
        expected = policy.act(seen(states), noise=noise).numpy()
        np.testing.assert_allclose(actions, expected, atol=tolerance(expected), rtol=0)
        assert facts["largest_difference"] <= tolerance(expected)
        if policy.names:
            weights = policy.weigh(seen(states))
            assert weights is not None
            np.testing.assert_allclose(alpha[0], weights.detach().numpy(), atol=TOLERANCE, rtol=0)
        else:
            assert alpha == []


@pytest.mark.parametrize("case", ["composed", "nsec", "asec", "direct"])
@pytest.mark.parametrize("pick", ["max-q", "min-qc"])
def test_onnx_takes_the_candidate_that_the_critic_wants(
    case: str, pick: str, make_wide_critics: Callable[[], Critics], tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="`make setup-policy` installs it")
    policy = {**CASES, **FURTHER}[case]()
    policy.attach(make_wide_critics())
    policy.num_candidates = 5
    export_policy(policy, tmp_path / "out", "onnx", pick=pick)
    opened = session(tmp_path / "out" / "policy.onnx")
    for states, candidates in ((STATES, 5), (1, 16), (3, 1)):
        noise = policy.draw(states, candidates, torch.Generator().manual_seed(1))
        expected = policy.act(seen(states), noise=noise, pick=pick).numpy()
        actions = opened.run(["actions"], {"observations": seen(states).numpy(), "noise": noise.numpy()})[0]
        np.testing.assert_allclose(actions, expected, atol=TOLERANCE, rtol=0)
    first = policy.act(seen(), noise=policy.draw(STATES, 5, torch.Generator().manual_seed(1)), pick="first")
    chosen = policy.act(seen(), noise=policy.draw(STATES, 5, torch.Generator().manual_seed(1)), pick=pick)
    assert not torch.equal(first, chosen), "else this shows nothing"


def test_equal_probabilities_go_by_the_lower_number(example: ModuleType, tmp_path: Path) -> None:
    policy = composed(kind="top_p")
    assert isinstance(policy, ComposedPolicy)
    with torch.no_grad():
        for parameter in policy.alpha.parameters():
            parameter.zero_()
    wanted = policy.weigh(seen(2)).detach().numpy()
    np.testing.assert_allclose(wanted, [[0.5, 0.5]] * 2)
    described = describe(policy)
    opened = example.Policy.__new__(example.Policy)
    opened.w = described.arrays
    np.testing.assert_allclose(
        opened.run(described.document["actor"]["predictor"]["alpha"], seen(2).numpy()), wanted
    )
    export_policy(policy, tmp_path / "safetensors", "safetensors")
    pytest.importorskip("onnx", reason="`make setup-policy` installs it")
    export_policy(policy, tmp_path / "onnx", "onnx")
    noise = policy.draw(2, 1).numpy()
    alpha = session(tmp_path / "onnx" / "policy.onnx").run(
        ["alpha"], {"observations": seen(2).numpy(), "noise": noise}
    )
    np.testing.assert_allclose(alpha[0], wanted)


def test_the_document_says_what_the_arrays_are(tmp_path: Path) -> None:
    export_policy(composed(), tmp_path / "out", "safetensors")
    document = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert document["names"] == ["walk", "run"]
    assert (document["kind"], document["sheets"], document["pick"]) == ("composed", 5, "first")
    assert document["arrays"]["sha256"] == sha256_of(tmp_path / "out" / "arrays.safetensors")
    arrays = describe(composed()).arrays
    layer = document["actor"]["predictor"]["steps"][0]["name"]
    assert arrays[f"{layer}.lora_A"].shape[0] == 5
    assert arrays[f"{layer}.owner"].tolist() == [0, 0, 1, 1, 1]
    assert arrays[f"{layer}.scaling"].tolist() == [2, 2, 3, 3, 3]
    assert {array.dtype.name for array in arrays.values()} == {"float32", "int64"}


def test_damage_is_noticed_by_the_example(example: ModuleType, tmp_path: Path) -> None:
    export_policy(base_of(), tmp_path / "out", "safetensors")
    path = tmp_path / "out" / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AssertionError, match="damaged"):
        example.Policy(tmp_path / "out")


class Constant(Denoiser, Router):
    """A network, and a router, that nobody described."""

    def forward(self, *given: Any) -> Any:
        raise AssertionError


def refused(policy: Policy, folder: Path, to: str = "safetensors", **options: Any) -> ExpertiseError:
    with pytest.raises(ExpertiseError) as found:
        export_policy(policy, folder, to, **options)
    assert "\n" not in found.value.message
    return found.value


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    base, out = base_of(), tmp_path / "out"
    growing = GrowingPolicy(base, GrowthConfig().new(base.acting, "walk", 0), GrowthConfig())
    for to in FORMATS:
        assert "'growing' cannot be exported" in refused(growing, out, to).message
    assert "export format" in refused(base, out, "onxx").message
    assert "needs a critic of safety" in refused(base, out, pick="min-qc").message
    assert "unknown pick" in refused(base, out, pick="best").message
    other = base_of()
    other.acting = Constant()
    assert "class Constant cannot be exported" in refused(other, out).message
    unknown = base_of()
    assert isinstance(unknown.acting, PlainNetwork)
    unknown.acting.layers[2] = nn.GELU()
    assert "class GELU" in refused(unknown, out).message
    strange = composed()
    strange.alpha = Constant()
    assert "router of class Constant" in refused(strange, out).message
    for config, words in (
        (ALPHA.config("top_k", k=1), "class TopK"),
        (ALPHA.config(squash="sigmoid", start="random"), 'squash = "sigmoid"'),
        (ALPHA.config(normalize=True), "normalize"),
        (ALPHA.config("top_p", normalize=True), "normalize"),
        (ALPHA.config("top_p", scale="mean-one"), "mean-one"),
        (ALPHA.config("top_p", max_parts=1), "max_parts"),
        (ALPHA.config("top_p", scores="sigmoid"), "scores"),
    ):
        assert words in refused(ComposedPolicy(base, [skill_of(base, "walk")], config), out).message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert isinstance(refused(base_of(), tmp_path / "out"), SkillError)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx.helper", None)
    error = refused(base_of(), tmp_path / "out", "onnx")
    assert isinstance(error, MissingExtra)
    assert error.hints == ("pip install 'expertise[onnx]'",)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_acts_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="`make setup-policy` installs it")
    from expertise.policy.export import onnx as form

    policy, built = base_of(), form.model_of

    def wrong(described: Any) -> Any:
        described.arrays["actor.scale.mean"] += 1
        return built(described)

    monkeypatch.setattr(form, "model_of", wrong)
    assert "act otherwise" in refused(policy, tmp_path / "out", "onnx").message
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_was_saved_is_exported_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from expertise.cli.main import run
    from expertise.policy import save

    save(composed(), tmp_path / "policy")
    command = ["policy", "export", str(tmp_path / "policy"), "--to", "safetensors"]
    assert run([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["names"] == ["walk", "run"]
    assert sorted(facts["files"]) == ["arrays.safetensors", "export.json"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert run(["policy", "export", str(tmp_path), "--to", "onnx", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_says_which_noise_is_wanted_and_what_the_example_does_not_act_with(
    make_wide_critics: Callable[[], Critics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from expertise.cli.main import run
    from expertise.policy import save

    policy = composed()
    policy.attach(make_wide_critics())
    policy.num_candidates, policy.pick = 16, "min-qc"
    save(policy, tmp_path / "policy")
    save(FURTHER["direct"](), tmp_path / "direct")

    def said(name: str, *options: str) -> str:
        out = str(tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert (
            run(["policy", "export", str(tmp_path / name), "--to", "safetensors", "--out", out, *options])
            == 0
        )
        return capsys.readouterr().out

    whole = said("policy")
    assert (
        "noise: [5, states, 16, 3]; min-qc takes one of the 16 candidates (--pick first: draw one)\n" in whole
    )
    first = said("policy", "--pick", "first")
    assert "noise: [5, states, 1, 3]\n" in first
    assert "min-qc" not in first
    assert "act_numpy.py" not in whole + first
    assert "docs/examples/act_numpy.py does not act with policies of kind direct" in said("direct")


def test_a_graph_further_away_than_rounding_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="`make setup-policy` installs it")
    from expertise.cli.main import run
    from expertise.policy import save
    from expertise.policy.export import onnx as form

    save(base_of(), tmp_path / "policy")
    command = ["policy", "export", str(tmp_path / "policy"), "--to", "onnx", "--out"]
    assert run([*command, str(tmp_path / "near")]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(form, "_difference", lambda *given: 2e-5)
    assert run([*command, str(tmp_path / "far"), "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["largest_difference"] == 2e-5
    assert found.err.startswith("warning: actions of the graph differ from the policy's by up to 2.0e-05")
    assert found.err.count("\n") == 1


def test_a_registered_form_is_refused_by_its_nearest_name() -> None:
    with pytest.raises(RecipeError, match="unknown export format") as found:
        FORMATS["onnxx"]
    assert found.value.hints == ("did you mean 'onnx'?",)
