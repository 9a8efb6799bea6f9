"""The second experiment: a tiny Llama of transformers, trained here from nothing, and two skills for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expertise.lm.causal import CausalLM
from expertise.lm.data import Prepared, prepare
from expertise.lm.evaluate import domain_texts, evaluate
from expertise.lm.foreign import Foreign
from expertise.lm.objective import next_token_loss
from expertise.lm.open import open_model
from expertise.lm.skills import learn_skill
from expertise.runs import folder, loop
from expertise.runs.files import atomic_folder
from expertise.runs.loop import Losses
from expertise.skills import Library, Skill, compose
from expertise.skills.composed_json import Reads
from reproduce.common.rows import Values
from reproduce.skills_lm.measure import BITS, Bench
from reproduce.skills_lm.ours import BASE, PAIR, SEQUENCE, TOKEN, one_hot
from reproduce.skills_lm.plan import TARGETS, Plan, dense_router

SETTING = "tiny Llama"


class Llama:
    """All rows of one seed.

    Args:
        bench: plan, seed, folders and results.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.pair = TARGETS[0]

    def measure(self) -> None:
        """Every row of this seed that is not there yet."""
        bench = self.bench

        def constant(weights: list[float]) -> Values:
            return {BITS: bench.bits(self.fixed, bench.target(self.pair, self.base), weights)}

        bench.once(PAIR, SETTING, BASE, lambda: constant([0.0, 0.0]))
        for index, domain in enumerate(self.pair):
            bench.once(PAIR, SETTING, domain, functools.partial(constant, one_hot(index, 2)))
        routers: dict[str, Reads] = {SEQUENCE: "pooled", TOKEN: "layer"}
        for row, reads in routers.items():
            bench.once(PAIR, SETTING, row, functools.partial(self._composed, reads, row))

    def _composed(self, reads: Reads, row: str) -> Values:
        work = f"routers/{row.replace(' ', '-')}"
        return self.bench.composed(self.base, self.skills, self.pair, (dense_router(), reads), work)

    @functools.cached_property
    def base(self) -> CausalLM:
        """The base, opened from a folder that transformers wrote."""
        bench = self.bench
        made = bench.folder / "hub"
        if not made.is_dir():
            recipe = bench.plan.base_recipe(str(bench.text), bench.seed)
            prepared = prepare(recipe.data, recipe.tokenizer, bench.say)
            task = LlamaTask(bench.plan, prepared, bench.seed)
            run = bench.folder / "base"
            with folder.held(run):
                loop.train(run, task, recipe.train, recipe.optimizer)
            _save(task.model, prepared, made)
        return open_model(made)

    @functools.cached_property
    def skills(self) -> list[Skill]:
        """A skill for each of the target's domains, from a library."""
        bench, plan = self.bench, self.bench.plan
        library = Library(bench.folder / "library")
        for domain in self.pair:
            if domain not in library.names():
                source = bench.source((f"skill.{domain}", domain))
                config = plan.skill_config(source, plan.rank, plan.skill_steps, bench.seed)
                work = bench.folder / "skills" / domain
                learnt = learn_skill(self.base, domain, config, work, say=bench.say)
                library.add(learnt.skill, base=self.base.core, purpose=f"reads {domain}")
        return library.load_all(self.pair, self.base.core)

    @functools.cached_property
    def fixed(self) -> CausalLM:
        """The base with both skills, for weights that a call names."""
        return self.base.around(compose(self.base.core, self.skills))


class LlamaTask:
    """Next-token prediction with a Llama of transformers, as the training loop sees it.

    Args:
        plan: its sizes.
        prepared: the text.
        seed: of the weights and of the order of the text.
    """

    unit = "tokens"

    def __init__(self, plan: Plan, prepared: Prepared, seed: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=prepared.vocab_size,
            hidden_size=plan.dim,
            intermediate_size=3 * plan.dim,
            num_hidden_layers=plan.num_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=plan.context,
            bos_token_id=None,
            eos_token_id=prepared.end_of_text,
            tie_word_embeddings=False,
        )
        self.model: nn.Module = LlamaForCausalLM(config)
        self.units_per_step = plan.batch_size * plan.context
        self._view = Foreign(self.model, prepared.tokenizer)
        self._batches = prepared.batches(plan.context, plan.batch_size, seed)
        held_out = plan.evaluation().bytes_per_domain
        self._texts = domain_texts(prepared, "validation", held_out, plan.context)
        self._batch_size = plan.batch_size

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Of one step; steps are not cut into micro-batches here."""
        batch = self._batches.batch(step)
        loss = next_token_loss(self._view, batch.tokens, batch.targets)
        return Losses(total=loss, reported={"loss": loss}, tables={})

    def after_step(self) -> None:
        """Nothing."""

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Bits per byte on validation text."""
        return evaluate(self._view, self._texts, 2 * self._batch_size, between=between).to_json()

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """The mean."""
        return f"{evaluation['bits_per_byte']['mean']:.3f} bits per byte"

    def files(self) -> Mapping[str, str]:
        """None: the finished model is written by transformers itself."""
        return {}


def _save(model: Any, prepared: Prepared, path: Path) -> None:
    """Write the folder that `from_pretrained` reads."""
    from transformers import PreTrainedTokenizerFast

    end = prepared.tokenizer.id_to_token(prepared.end_of_text)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=prepared.tokenizer, eos_token=end)
    with atomic_folder(path) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
