"""Learning a skill: what learns and what does not, going on after a stop, what is refused."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import DataError, RecipeError, RunError, SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.open import open_model
from expertise.lm.reading import prepare_for
from expertise.lm.skills import LearnConfig, learn_skill
from expertise.lm.skills.config import config_of
from expertise.lm.skills.task import CompositionTask, Learning
from expertise.runs.files import sha256_of
from expertise.runs.metrics import read_lines
from expertise.runs.signals import Stopped
from expertise.skills.composing import compose
from expertise.skills.fingerprints import fingerprint
from expertise.skills.learn import SkillConfig, fresh, trainable
from expertise.skills.library import Library

Settings = Callable[..., list[str]]


def silent(_line: str) -> None:
    """Print nothing."""


def digests(folder: Path) -> dict[str, str]:
    return {str(path): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_skill_learns_and_its_base_stays_bit_for_bit(
    base: CausalLM, base_path: Path, library: Library, settings: Settings, tmp_path: Path
) -> None:
    before, files = fingerprint(base.core), digests(base_path) | digests(library.path)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits = base(tokens)
    got = learn_skill(base, "new", config_of(LearnConfig, settings("prose")), tmp_path / "w", say=silent)
    bits = got.metrics["bits_per_byte"]
    assert set(bits["before"]) == {"prose", "mean"}
    assert bits["after"]["prose"] < bits["before"]["prose"] - 0.02
    assert fingerprint(base.core) == before
    assert digests(base_path) | digests(library.path) == files
    with torch.no_grad():
        assert torch.equal(base(tokens), logits)
        got.model.core.composition.set_weights(None)  # type: ignore[union-attr, operator]
        assert torch.equal(got.model(tokens), logits)
    assert all(parameter.grad is None for parameter in base.core.parameters())
    assert {"data", "steps", "tokens"} <= {"data", *got.metrics}
    assert got.data.endswith(": prose")


def test_the_same_seed_gives_the_same_skill(base: CausalLM, settings: Settings, tmp_path: Path) -> None:
    config = config_of(LearnConfig, settings("code", "train.steps=3"))
    one, two = (learn_skill(base, "x", config, tmp_path / name).skill for name in ("a", "b"))
    other = learn_skill(
        base, "x", config_of(LearnConfig, settings("code", "train.steps=3", "train.seed=1")), tmp_path / "c"
    ).skill
    for address, factors in one.factors.items():
        assert torch.equal(factors.A, two.factors[address].A)
        assert torch.equal(factors.B, two.factors[address].B)
        assert not torch.equal(factors.A, other.factors[address].A)


def test_only_the_factors_get_gradients(base: CausalLM, settings: Settings) -> None:
    config = config_of(LearnConfig, settings())
    prepared = prepare_for(base, config.data, silent)
    growing = fresh(base.core, "x", SkillConfig(rank=2))
    core = compose(base.core, [], growing=growing)
    task = CompositionTask(base.around(core), config, prepared)
    task.model.train()
    task.losses(0, 0, True).total.backward()
    with_grad = {name for name, p in core.named_parameters() if p.grad is not None}
    assert with_grad == {name for name, p in core.named_parameters() if p.requires_grad}
    assert with_grad
    assert all("lora_" in name for name in with_grad)
    assert len(list(task.model.parameters())) == len(with_grad)
    assert all(p.grad is None for p in base.core.parameters())


def test_learning_goes_on_in_other_pieces_and_says_where_the_rate_jumps(
    base: CausalLM, settings: Settings, tmp_path: Path
) -> None:
    more = ("data.pack=documents", "train.log_every=1", "skill.rank=2")

    def learn(work: str, *settings_: str) -> list[float]:
        config = config_of(LearnConfig, settings("prose", *more, *settings_))
        learn_skill(base, "x", config, tmp_path / work, say=said.append)
        return [line["loss"] for line in read_lines(tmp_path / work / "metrics.jsonl") if "loss" in line]

    said: list[str] = []
    whole = learn("whole", "train.steps=4")
    learn("cut", "train.steps=2")
    assert learn("cut", "train.steps=4", "train.accumulation=4") == pytest.approx(whole, rel=1e-4)
    cosine = ("optimizer.schedule=cosine", "optimizer.warmup=0")
    learn("cosine", "train.steps=2", *cosine)
    assert not [line for line in said if "learning rate" in line]
    learn("cosine", "train.steps=3", *cosine)
    (note,) = [line for line in said if "learning rate" in line]
    assert "--set optimizer.schedule_steps=2" in note


def test_what_a_checkpoint_holds_is_what_learns(base: CausalLM, settings: Settings, tmp_path: Path) -> None:
    from safetensors import safe_open

    config = config_of(LearnConfig, settings("prose", "train.steps=2", "skill.rank=2"))
    got = learn_skill(base, "x", config, tmp_path / "w")
    with safe_open(tmp_path / "w" / "checkpoints" / "step-2" / "model.safetensors", "pt") as file:
        sizes = [file.get_tensor(key).numel() for key in file.keys()]  # noqa: SIM118 - no mapping
    assert sum(sizes) == sum(p.numel() for p in trainable(got.model.core))
    assert sum(sizes) < sum(p.numel() for p in base.core.parameters())


def test_the_mode_of_what_learns_is_that_of_the_model(base: CausalLM) -> None:
    core = compose(base.core, [], growing=fresh(base.core, "x", SkillConfig()))
    learning = Learning(core)
    learning.train()
    assert any(module.training for module in core.modules())
    learning.eval()
    assert not any(module.training for module in core.modules())


class StopsAfter:
    """Says nothing, and ends training by a signal once its metrics have so many lines."""

    def __init__(self, work: Path, lines: int) -> None:
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, args=(work / "metrics.jsonl", lines))
        self.thread.start()

    def _watch(self, path: Path, lines: int) -> None:
        while not self.done.wait(0.005):
            if path.is_file() and path.read_text().count("\n") >= lines:
                os.kill(os.getpid(), signal.SIGINT)
                return


def test_stopped_learning_goes_on_to_the_same_end(base: CausalLM, settings: Settings, tmp_path: Path) -> None:
    config = config_of(LearnConfig, settings("prose", "train.steps=12", "train.log_every=1"))
    whole = learn_skill(base, "x", config, tmp_path / "whole").skill
    stopper = StopsAfter(tmp_path / "cut", 3)
    try:
        with pytest.raises(Stopped):
            learn_skill(base, "x", config, tmp_path / "cut")
    finally:
        stopper.done.set()
        stopper.thread.join()
    assert list((tmp_path / "cut" / "checkpoints").iterdir())
    resumed = learn_skill(base, "x", config, tmp_path / "cut").skill
    for address, factors in whole.factors.items():
        assert torch.equal(factors.A, resumed.factors[address].A)
        assert torch.equal(factors.B, resumed.factors[address].B)
    again = learn_skill(base, "x", config, tmp_path / "cut").skill  # finished: the same without training
    assert all(torch.equal(f.B, again.factors[a].B) for a, f in whole.factors.items())


def test_a_skill_grows_beside_others(
    base: CausalLM, library: Library, settings: Settings, tmp_path: Path
) -> None:
    config = config_of(LearnConfig, settings("code"))
    old = library.load_all(["prose"], base.core)
    got = learn_skill(base, "new", config, tmp_path / "w", beside=old, weights=[0.5])
    assert got.metrics["beside"] == {"prose": 0.5}
    assert got.model.core.composition.names == ("prose", "new")  # type: ignore[union-attr]
    bits = got.metrics["bits_per_byte"]
    assert bits["after"]["code"] < bits["before"]["code"]
    alone = learn_skill(base, "new", config, tmp_path / "alone").skill
    assert any(not torch.equal(f.B, alone.factors[a].B) for a, f in got.skill.factors.items())
    default = learn_skill(base, "new", config, tmp_path / "d", beside=old)
    assert default.metrics["beside"] == {"prose": 1.0}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["data.source="], RecipeError, "names no data"),
        (["data.domains=['poetry']"], RecipeError, "the text has no domain 'poetry'"),
        (["data.source=nowhere"], DataError, "nowhere does not exist"),
        (["skill.targets=['qvk']"], SkillError, "no weight of the base that can be adapted is called 'qvk'"),
        (["context=33"], RecipeError, r"context \(33\) is more than the model's, 32"),
        (["train.batch_size=100000"], DataError, "one batch needs"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_anything_is_written(
    run_base: Path,
    settings: Settings,
    tmp_path: Path,
    changes: list[str],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        learn_skill(open_model(run_base), "x", config_of(LearnConfig, settings("", *changes)), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_name_that_no_folder_can_have_is_refused(
    run_base: Path, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(SkillError, match="cannot be a skill's name"):
        learn_skill(open_model(run_base), "../x", config_of(LearnConfig, settings()), tmp_path / "w")


def test_a_work_folder_belongs_to_one_training(run_base: Path, settings: Settings, tmp_path: Path) -> None:
    base = open_model(run_base)
    short = settings("prose", "train.steps=2")
    learn_skill(base, "x", config_of(LearnConfig, short), tmp_path / "w")
    with pytest.raises(RunError, match="was begun with another skill"):
        learn_skill(base, "y", config_of(LearnConfig, short), tmp_path / "w")
    with pytest.raises(RunError, match=r"was made with skill\.rank = 8; the recipe now says 4"):
        learn_skill(base, "x", config_of(LearnConfig, [*short, "skill.rank=4"]), tmp_path / "w")
    with torch.no_grad():
        base.core.embedding.weight[0, 0] += 1  # type: ignore[union-attr, index, operator]
    with pytest.raises(RunError, match="was begun with another base"):
        learn_skill(base, "x", config_of(LearnConfig, short), tmp_path / "w")
    with pytest.raises(RunError, match="holds no language model"):
        open_model(tmp_path / "w")


def test_a_base_without_a_tokenizer_reads_no_text(run_base: Path, settings: Settings, tmp_path: Path) -> None:
    base: Any = open_model(run_base)
    base.tokenizer = None
    with pytest.raises(RunError, match="no tokenizer"):
        learn_skill(base, "x", config_of(LearnConfig, settings()), tmp_path / "w")
