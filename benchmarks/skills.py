"""Speed and memory of composed skills beside PEFT: forward, a router's step, experts, small calls, library.

What PEFT is measured with are its own adapters; ours are the same ones, imported. Everything in a table takes
turns within one process on one thread; quote the ratios, not the seconds. A row `asked` says which ratio the
project asks for.

    python benchmarks/skills.py [--rounds 7] [--only forward,experts,…]
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import functools
import gc
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, ratio, show
from torch import Tensor, nn

from expertise.mixture import LowRankExperts, Mixture, SwiGLUExperts, TopK
from expertise.mixture.routers.context import Context
from expertise.mixture.routes import Routes
from expertise.runs.results import Results, Row
from expertise.skills import Library, Skill, compose, extended
from expertise.skills.learn import SkillConfig, fresh

RESULTS = Path(__file__).parents[1] / "docs/results/skills_speed.json"
SIZES = {
    "d=512 h=1376 layers=4 tokens=32x64": (512, 1376, 4, 32, 64),
    "d=768 h=2048 layers=6 tokens=16x64": (768, 2048, 6, 16, 64),
}
"""Width, hidden width and layers of a Llama, rows and tokens of the batch."""
SKILLS, RANK = 8, 8
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ONE = "one LoRA (PEFT)"


class Beside:
    """A Llama with the same skills in PEFT and in ours.

    Args:
        size: one of `SIZES`.
    """

    def __init__(self, size: tuple[int, int, int, int, int]) -> None:
        from peft import LoraConfig, XLoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        dim, hidden, layers, self.num_rows, length = size
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=dim // 64,
            num_key_value_heads=dim // 64,
            vocab_size=4096,
            use_cache=False,
        )
        self.base = LlamaForCausalLM(config).eval()
        self.ids = torch.randint(4096, (self.num_rows, length))
        self.context = torch.randn(self.num_rows, dim)
        self.weights = torch.rand(self.num_rows, SKILLS)
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LAYERS, init_lora_weights=False)
        self.names = [f"skill{number}" for number in range(SKILLS)]
        self.adapters = get_peft_model(copy.deepcopy(self.base), lora, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.adapters.add_adapter(name, copy.deepcopy(lora))
        self.adapters.eval()
        with tempfile.TemporaryDirectory() as folder:
            self.adapters.save_pretrained(folder)
            self.one = get_peft_model(copy.deepcopy(self.base), copy.deepcopy(lora)).eval()
            library = Library(Path(folder) / "library")
            for name in self.names:
                library.import_peft(Path(folder) / name, name=name, base=self.base)
            self.ours = compose(self.base, library, self.names)
            self.by_context, self.by_token = (
                compose(self.base, library, self.names, router=Context.Config(context_dim=dim), reads=reads)
                for reads in ("context", "token")
            )
            # X-LoRA looks its adapters up by their numbers, whatever they are called.
            several = {str(number): str(Path(folder) / name) for number, name in enumerate(self.names)}
            mixed = XLoraConfig(task_type="CAUSAL_LM", hidden_size=dim, adapters=several)
            self.mixed = get_peft_model(copy.deepcopy(self.base), mixed).eval()
        self._check()

    @torch.no_grad()
    def _check(self) -> None:
        """What is compared computes the same."""
        ids = self.ids[:2]
        self.adapters.set_adapter(self.names[3])
        ours = self.ours(input_ids=ids, skills=[self.names[3]] * 2).logits
        torch.testing.assert_close(ours, self.adapters(input_ids=ids).logits, rtol=1e-3, atol=1e-4)

    def adapters_in_turn(self) -> Tensor:
        """Every adapter of PEFT for the whole batch, outputs added up."""
        total = torch.zeros(())
        for name in self.names:
            self.adapters.set_adapter(name)
            total = total + self.adapters(input_ids=self.ids).logits
        return total

    def rows_in_turn(self) -> Tensor:
        """Every row of the batch alone, with its own weights of all of PEFT's adapters."""
        from peft.tuners.lora import LoraLayer

        self.adapters.base_model.set_adapter(self.names)
        layers = [module for module in self.adapters.modules() if isinstance(module, LoraLayer)]
        found = []
        for ids, weights in zip(self.ids.split(1), self.weights.tolist(), strict=True):
            for layer in layers:
                for name, weight in zip(self.names, weights, strict=True):
                    layer.set_scale(name, weight)
            found.append(self.adapters(input_ids=ids).logits)
        return torch.cat(found)


def forward(rounds: int) -> Iterator[Row]:
    """A batch through a Llama, all of its linear layers adapted but the head."""
    for name, size in SIZES.items():
        made, setting = Beside(size), f"{name} skills={SKILLS} rank={RANK}"
        ids, weights = made.ids, made.weights
        ways: dict[str, Callable[[], object]] = {
            ONE: lambda made=made, ids=ids: made.one(input_ids=ids),
            "base": lambda made=made, ids=ids: made.base(input_ids=ids),
            "ours, weights per row": lambda made=made, ids=ids, w=weights: made.ours(
                input_ids=ids, weights=w
            ),
            "ours, router per row": lambda made=made, ids=ids: made.by_context(
                input_ids=ids, context=made.context
            ),
            "ours, router per token": lambda made=made, ids=ids: made.by_token(input_ids=ids),
        }
        slow: dict[str, Callable[[], object]] = {
            "ours, weights per row": ways["ours, weights per row"],
            "X-LoRA (PEFT)": lambda made=made, ids=ids: made.mixed(input_ids=ids),
            "adapters in turn (PEFT)": made.adapters_in_turn,
            "rows in turn (PEFT)": made.rows_in_turn,
        }
        with torch.no_grad():
            times = alternate(ways, rounds)
            slow_times = alternate(slow, max(2, rounds // 3))
        yield _row("forward", setting, "asked: ours, weights per row", "ratio", f"times {ONE}", 1.25)
        yield from _ratios("forward", setting, times, ONE)
        ours = "ours, weights per row"
        yield _row("forward", setting, "asked: X-LoRA and adapters in turn", "slower", f"times {ours}", 3.0)
        for way in list(slow)[1:]:
            yield _row("forward", setting, way, "slower", f"times {ours}", ratio(slow_times, way, ours))


def step(rounds: int) -> Iterator[Row]:
    """A training step: of the one LoRA, of routers over frozen skills, of X-LoRA's classifier."""
    for name, size in SIZES.items():
        made, setting = Beside(size), f"{name} skills={SKILLS} rank={RANK}"
        ways = {
            ONE: _step(made.one, input_ids=made.ids, labels=made.ids),
            "ours, router per row": _step(
                made.by_context, input_ids=made.ids, labels=made.ids, context=made.context
            ),
            "ours, router per token": _step(made.by_token, input_ids=made.ids, labels=made.ids),
        }
        yield _row("step", setting, "asked: ours", "ratio", f"times {ONE}", 1.25)
        yield from _ratios("step", setting, alternate(ways, rounds), ONE)
        mixed = "X-LoRA (PEFT)"
        slow = {ONE: ways[ONE], mixed: _step(made.mixed, input_ids=made.ids, labels=made.ids)}
        times = alternate(slow, max(2, rounds // 3))
        yield _row("step", setting, mixed, "ratio", f"times {ONE}", ratio(times, mixed, ONE))


def experts(rounds: int) -> Iterator[Row]:
    """Four skills of rank 4 on the weights of experts: ours, and those of transformers."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    mixtures = nn.Sequential(*[Mixture(TopK(512, 16, 4), SwiGLUExperts(16, 512, 352)) for _ in range(2)])
    config = Qwen2MoeConfig(
        hidden_size=512,
        moe_intermediate_size=352,
        shared_expert_intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=16,
        num_experts_per_tok=4,
        vocab_size=4096,
        use_cache=False,
    )
    bases = {
        "ours, 2 mixtures of 16 SwiGLU experts": (mixtures, torch.randn(32, 64, 512)),
        "Qwen2-MoE of transformers, 2 layers of 16 experts": (
            Qwen2MoeForCausalLM(config),
            torch.randint(4096, (32, 64)),
        ),
    }
    for name, (base, x) in bases.items():
        base.eval()
        setting = f"{name}, d=512 h=352 k=4 tokens=32x64 skills=4 rank=4"
        composed = compose(base, [_skill(base, str(i), ["experts"], 4, i) for i in range(4)])
        per_row = torch.rand(32, 4)
        ways = {
            "base": functools.partial(base, x),
            "ours, weights per row": functools.partial(composed, x, weights=per_row),
            "ours, constant weights": functools.partial(composed, x, weights=[0.7, -0.3, 0.5, 0.1]),
        }
        with torch.no_grad():
            times = alternate(ways, rounds)
        yield _row("experts", setting, "asked: ours", "ratio", "times base", 1.5)
        yield from _ratios("experts", setting, times, "base")


class Block(nn.Module):
    """A residual block of the policy's network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the block makes of it."""
        return x + self.body(x)


def small(rounds: int) -> Iterator[Row]:
    """Calls of small networks, as a policy makes them: two skills of rank 8, few rows."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(256, 256), nn.Mish())]
    residual = nn.Sequential(
        nn.Linear(158, 256), *[Block(256) for _ in range(3)], nn.Mish(), nn.Linear(256, 6)
    )
    for name, base, width, num_rows in (
        ("3 linear layers of 256", nn.Sequential(*layers), 256, 1),
        ("residual network of 1.6 M", residual, 158, 1),
        ("residual network of 1.6 M", residual, 158, 64),
    ):
        setting = f"{name}, rows={num_rows} skills=2 rank=8"
        composed: Any = compose(base.eval(), [_skill(base, str(i), ["all-linear"], 8, i) for i in range(2)])
        x, weights = torch.randn(num_rows, width), torch.rand(num_rows, 2)

        def five(
            model: nn.Module = base, x: Tensor = x, composed: Any = composed, weights: Tensor | None = None
        ) -> None:
            if weights is None:
                for _ in range(5):
                    model(x)
                return
            # As in five steps of denoising, for which alpha is made once.
            with composed.composition.using(weights=weights):
                for _ in range(5):
                    composed(x)

        ways = {
            "base": five,
            "ours, weights for five calls": functools.partial(five, weights=weights),
            "ours, weights in each call": lambda c=composed, x=x, w=weights: [
                c(x, weights=w) for _ in range(5)
            ],
        }
        with torch.no_grad():
            times = alternate(ways, 3 * rounds, calls=40 if num_rows == 1 else 4)
        yield from _ratios("small", setting, times, "base")


def sparse(rounds: int) -> Iterator[Row]:
    """Two of K low-rank parts for each token: all for every token, tokens brought to parts, the choice."""
    torch.manual_seed(0)
    for dim, rank in ((512, 8), (512, 32), (2048, 8)):
        for num_parts in (8, 32, 128):
            parts, x = LowRankExperts(num_parts, dim, dim, rank), torch.randn(1024, dim)
            nn.init.normal_(parts.lora_B)
            affinities = torch.rand(1024, num_parts)
            gates, ids = affinities.topk(2)
            routes = Routes(gates=gates, affinities=affinities, part_ids=ids)
            setting = f"tokens=1024 d={dim} rank={rank} parts={num_parts} k=2"
            ways = {
                way: functools.partial(Mixture(None, parts, dispatch=way), x, routes=routes)
                for way in ("auto", "dense", "grouped")
            }
            with torch.no_grad():
                times = alternate(ways, rounds)
            for way in ("dense", "grouped"):
                yield _row("sparse", setting, way, "ratio", "times auto", ratio(times, way, "auto"))


def memory(rounds: int) -> Iterator[Row]:
    """What one skill more costs a composed model: in tensors, and in the process's resident memory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8, vocab_size=4096
    )
    llama = LlamaForCausalLM(config).eval()
    setting = "d=512 h=1376 layers=4, 8 skills of rank 64 and 4 more, one of rank 256"
    ranks = [64, 64, 64, 256]
    model = compose(llama, [_skill(llama, str(i), ["all-linear"], 64, i) for i in range(8)])
    tensors, resident, own = _held(model), _resident(), 0
    for number, rank in enumerate(ranks, 8):
        skill = _skill(llama, str(number), ["all-linear"], rank, number)
        own += sum(4 * (f.A.numel() + f.B.numel()) for f in skill.factors.values())
        model = extended(model, skill)
        del skill
    unit = "times the skills' own size"
    yield _row("memory", setting, "asked: ours", "added", unit, 1.0)
    yield _row("memory", setting, "ours, tensors", "added", unit, (_held(model) - tensors) / own)
    if resident:
        yield _row("memory", setting, "ours, resident memory", "added", unit, (_resident() - resident) / own)
    shared = sum(p.numel() for p in llama.parameters()) * 4 / _held(model)
    yield _row("memory", setting, "base, shared with the composed model", "share", "of its bytes", shared)


def library(rounds: int) -> Iterator[Row]:
    """A library of 100 skills, opened in a process of its own."""
    base = nn.Sequential(*[nn.Linear(256, 256) for _ in range(12)])
    code = (
        "import sys, time; from expertise.skills import Library; start = time.perf_counter();"
        "library = Library(sys.argv[1]); names = library.names();"
        "cards = [library.card(name) for name in names]; listed = time.perf_counter();"
        "library.card(names[50]); shown = time.perf_counter();"
        "print(len(cards), listed - start, shown - listed)"
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Library(folder)
        for number in range(100):
            made.add(_skill(base, f"skill-{number}", ["all-linear"], 8, number), purpose="One of a hundred.")
        found = []
        for _ in range(rounds):
            run = subprocess.run(
                [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
            )
            count, listed, shown = run.stdout.split()
            assert count == "100"
            found.append((float(listed), float(shown)))
    setting = "100 skills of rank 8 on 12 layers of 256"
    yield _row("library", setting, "asked: list and show", "seconds", "s", 0.1)
    yield _row("library", setting, "list with every card", "seconds", "s", sorted(found)[len(found) // 2][0])
    yield _row("library", setting, "show one", "seconds", "s", sorted(f[1] for f in found)[len(found) // 2])


TABLES = {made.__name__: made for made in (forward, step, experts, small, sparse, memory, library)}


def _row(table: str, setting: str, row: str, metric: str, unit: str, value: float) -> Row:
    return Row(table=table, setting=setting, row=row, metric=metric, unit=unit, seed=0, value=value)


def _ratios(table: str, setting: str, times: dict[str, list[float]], reference: str) -> Iterator[Row]:
    yield _row(
        table, setting, reference, "seconds", "CPU s", sorted(times[reference])[len(times[reference]) // 2]
    )
    for name in times:
        if name != reference:
            yield _row(table, setting, name, "ratio", f"times {reference}", ratio(times, name, reference))


def _step(model: nn.Module, **inputs: Tensor) -> Callable[[], None]:
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4)

    def once() -> None:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    return once


def _skill(base: nn.Module, name: str, targets: Sequence[str], rank: int, seed: int) -> Skill:
    """A skill whose B is drawn, too."""
    made = fresh(base, name, SkillConfig(targets=list(targets), rank=rank), seed)
    for factors in made.factors.values():
        nn.init.normal_(factors.B, std=0.02)
    return made


def _held(model: nn.Module) -> int:
    """Bytes of everything that a model holds, what is shared counted once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model)}
    return sum(found.values())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _resident() -> int:
    """Bytes of this process in memory, after what is free was given back; 0 where that cannot be told."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * 4096
    except OSError:
        return 0


def main() -> None:
    """Measure, print, and write the rows; those of other tables stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(TABLES), help="tables, with commas between")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = Results(RESULTS)
    for table in arguments.only.split(","):
        rows = list(TABLES[table](arguments.rounds))
        show(rows)
        results.add(rows)


if __name__ == "__main__":
    main()
