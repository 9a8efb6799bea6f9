"""The sizes of the reproduction. They stand in the results file, which refuses rows of other sizes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from expertise.lm.data import DataConfig
from expertise.lm.recipe import EvaluationConfig, Recipe
from expertise.lm.skills import ComposeConfig, LearnConfig
from expertise.mixture.routers.configs import RouterConfig
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.top_p import TopP
from expertise.runs import recipe as recipes
from expertise.runs.config import TrainConfig
from expertise.runs.optim import OptimizerConfig
from expertise.skills.composed_json import Reads
from expertise.skills.learn import SkillConfig

COMMON = "code"
"""What a base mostly reads."""
SKILLS = ("headers", "docstrings", "tests", "data")
"""Domains that get a skill."""
TARGETS = (("headers", "data"), ("docstrings", "tests"))
"""Pairs of domains that are mixed."""


def target_name(pair: tuple[str, str]) -> str:
    """What a mixed target is called."""
    return " + ".join(pair)


Use = Literal["learn", "select", "held"]
"""What a target's text is for: routers and new skills learn, weights and rates are selected, tables show what
was held out."""


def file_of(pair: tuple[str, str], use: Use = "learn") -> str:
    """The name of its file, without an ending."""
    return f"{use}.{'+'.join(pair)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """How much text goes where, in bytes of each domain."""

    base_common: int = 4_000_000
    """Of the common domain, for the base."""
    base_other: int = 400_000
    """Of every other domain, for the base."""
    skill: int = 1_200_000
    """For the domain's skill."""
    learn: int = 100
    """Documents of each domain whose passages make a target's text to learn from."""
    select: int = 15
    """The same to select weights and rates on."""
    held: int = 35
    """The same to measure on."""
    passage: int = 500
    """Bytes of a passage, about."""
    least: int = 4
    """Passages that a document must have."""
    most: int = 8
    """Passages that are taken of it at most."""
    passages: int = 8
    """Passages of a target's document, of the two domains in turn; an even number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the rows depend on beside seed and text."""

    pools: PoolPlan = dataclasses.field(default_factory=PoolPlan)
    """Text."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, starts and order of data; each has its own base."""
    context: int = 256
    """Tokens of a window."""
    batch_size: int = 8
    """Windows of a step."""
    dim: int = 128
    """Width of both bases."""
    num_layers: int = 3
    """Depth of both bases."""
    vocab_size: int = 4096
    """Of the tokenizer, which is trained on the base's text."""
    num_parts: int = 8
    """Experts of a mixture layer of ours; 2 of them are taken."""
    hidden: int = 128
    """Width of an expert."""
    base_steps: int = 500
    """Of each base."""
    rank: int = 8
    """Of a skill; the joint one has as many parameters as all skills together."""
    skill_steps: int = 150
    """Of a skill; the joint one has as many as all skills and routers together."""
    router_steps: int = 150
    """Of a router, and of a skill that is learnt on the target itself."""
    few_bytes: tuple[int, ...] = (10_000, 50_000)
    """Text of the first target where little of it is known."""
    few_steps: tuple[int, ...] = (20, 80)
    """Steps on that."""
    skill_rate: float = 1e-2
    """Learning rate of skills."""
    router_rate: float = 1e-2
    """Learning rate of routers."""
    search_rates: tuple[float, ...] = (3e-3, 1e-2, 2e-2)
    """Learning rates that these were chosen from."""
    top_p: float = 0.7
    """Mass that the sparse router's skills must pass."""
    test_bytes: int = 80_000
    """Held-out text of each domain and target, at most."""
    search_bytes: int = 30_000
    """Validation text that fixed weights are searched on."""

    def settings(self) -> dict[str, Any]:
        """For the results file; seeds may be added later."""
        values = dataclasses.asdict(self)
        del values["seeds"]
        return values

    def base_recipe(self, text: str, seed: int) -> Recipe:
        """A small mixture of ours."""
        sources = [{"path": f"{text}/base.{domain}.jsonl", "domain": domain} for domain in (COMMON, *SKILLS)]
        values = {
            "data": {"source": sources},
            "tokenizer": {"vocab_size": self.vocab_size},
            "model": {
                "dim": self.dim,
                "num_layers": self.num_layers,
                "num_heads": 4,
                "context": self.context,
                "router": {"name": "top_k", "k": 2},
                "parts": {"num_parts": self.num_parts, "hidden": self.hidden},
                "always": {"hidden": self.hidden},
            },
            "balance": {"expert": 0.01},
            "optimizer": {"learning_rate": 5e-3, "schedule": "cosine", "warmup": self.base_steps // 10},
            "train": dataclasses.asdict(self.train(self.base_steps, seed)),
            "evaluation": dataclasses.asdict(self.evaluation()),
        }
        return recipes.build(values, Recipe)

    def skill_config(self, data: DataConfig, rank: int, steps: int, seed: int) -> LearnConfig:
        """A skill over all linear layers and all experts."""
        return LearnConfig(
            data=data,
            skill=SkillConfig(rank=rank),
            optimizer=_adam(self.skill_rate),
            train=self.train(steps, seed),
            evaluation=self.evaluation(),
            context=self.context,
        )

    def router_config(
        self, data: DataConfig, router: RouterConfig, reads: Reads, steps: int, seed: int
    ) -> ComposeConfig:
        """A router over skills."""
        return ComposeConfig(
            data=data,
            router=router,
            reads=reads,
            optimizer=_adam(self.router_rate),
            train=self.train(steps, seed),
            evaluation=self.evaluation(),
            context=self.context,
        )

    def train(self, steps: int, seed: int) -> TrainConfig:
        """One thread on the CPU, so that rows are comparable and repeatable."""
        return TrainConfig(
            steps=steps,
            batch_size=self.batch_size,
            seed=seed,
            device="cpu",
            threads=1,
            save_every=100,
            log_every=min(20, steps),
        )

    def evaluation(self) -> EvaluationConfig:
        """What training looks at; the tables measure for themselves."""
        return EvaluationConfig(bytes_per_domain=self.search_bytes)


def dense_router() -> RouterConfig:
    """A small network whose weights may have any sign (PSEC, arXiv 2502.05932, §4.2)."""
    return Context.Config(hidden=[64], squash="none")


def sparse_router(p: float) -> RouterConfig:
    """As many skills per token as it takes to pass p, with weights that sum to 1."""
    return TopP.Config(p=p, normalize=True)


def _adam(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, schedule="cosine", warmup=10, weight_decay=0.0)
