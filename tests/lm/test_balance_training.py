"""Loss-free balancing and the balance losses in whole runs: what is moved, reported, resumed, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.lm import load, objective
from expertise.lm.data import prepare
from expertise.lm.evaluate.run import evaluate_run
from expertise.lm.recipe import BalanceConfig
from expertise.lm.task import LanguageModelTask
from expertise.lm.train import train
from expertise.mixture import Hash, TopK
from expertise.mixture.mixture import recording
from expertise.runs.metrics import read_lines

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("same_threads")

TOP_K = "model.router={name='top_k', k=2, bias_step=0.01}"
TOP_P = "model.router={name='top_p', p=0.4, max_parts=3, bias_step=0.01}"
HASH = "model.router={name='hash'}"
NO_LOSS = ("balance.expert=0", "balance.entropy=0")
routers = pytest.mark.parametrize("router", [TOP_K, TOP_P], ids=["top_k", "top_p"])


def quiet(_line: str) -> None:
    """Say nothing."""


def task_of(recipe: Any) -> LanguageModelTask:
    return LanguageModelTask(recipe, prepare(recipe.data, recipe.tokenizer))


def biases(model: Any) -> list[Tensor]:
    return [mixture.router.bias.clone() for mixture in model.mixtures().values()]


def lines(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]


def state(run: Path, step: int, name: str = "model") -> bytes:
    return (run / "checkpoints" / f"step-{step}" / f"{name}.safetensors").read_bytes()


# --- loss-free bias -----------------------------------------------------------------------------------------


@routers
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_moves_each_bias_against_the_loads_of_all_its_tokens(
    small_recipe: Make, router: str, accumulation: int
) -> None:
    task = task_of(small_recipe(router, f"train.accumulation={accumulation}"))
    counts = [torch.zeros(4), torch.zeros(4)]
    for micro in range(accumulation):
        task.losses(0, micro, False)
        tokens = task._batches.batch(0, micro).tokens
        with recording(task.model) as mixtures, torch.no_grad():
            task.model(tokens)
        for layer, mixture in enumerate(mixtures):
            for row, number in zip(
                mixture.last_routes.part_ids.tolist(),
                mixture.last_routes.parts_per_token().tolist(),
                strict=True,
            ):
                for part in row[:number]:
                    counts[layer][part] += 1
    assert all(not bias.any() for bias in biases(task.model)), "nothing moves before the step is over"
    task.after_step()
    for bias, count in zip(biases(task.model), counts, strict=True):
        assert len(count.unique()) > 1
        torch.testing.assert_close(bias, 0.01 * torch.sign(count.mean() - count))


@routers
def test_accumulation_moves_the_biases_alike(tmp_path: Path, small_recipe: Make, router: str) -> None:
    settings = (router, "balance.per=sequence", "train.steps=5")
    train(small_recipe(*settings), tmp_path / "whole", quiet)
    train(small_recipe(*settings, "train.accumulation=2"), tmp_path / "cut", quiet)
    whole, cut = (biases(load(tmp_path / name)) for name in ("whole", "cut"))
    for a, b in zip(whole, cut, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)


@routers
def test_going_on_is_exact_with_a_bias(tmp_path: Path, small_recipe: Make, router: str) -> None:
    settings = (router, "train.accumulation=2")
    train(small_recipe(*settings, "train.steps=6"), tmp_path / "whole", quiet)
    train(small_recipe(*settings, "train.steps=3"), tmp_path / "cut", quiet)
    saved = biases(load(tmp_path / "cut"))
    assert all(bias.any() for bias in saved)
    train(small_recipe(*settings, "train.steps=6"), tmp_path / "cut", quiet)
    assert state(tmp_path / "whole", 6) == state(tmp_path / "cut", 6)
    assert state(tmp_path / "whole", 6, "optimizer") == state(tmp_path / "cut", 6, "optimizer")
    assert lines(tmp_path / "whole")[3:] == lines(tmp_path / "cut")[3:]


def test_metrics_show_the_largest_bias_of_each_layer(tmp_path: Path, small_recipe: Make) -> None:
    train(small_recipe(TOP_K), tmp_path / "run", quiet)
    shown = [line["largest_bias"] for line in lines(tmp_path / "run")]
    assert shown[0] == [0.0, 0.0]
    assert shown[1] == [0.01, 0.01]
    train(small_recipe(), tmp_path / "plain", quiet)
    assert "largest_bias" not in lines(tmp_path / "plain")[0]


def test_evaluation_moves_nothing(small_recipe: Make) -> None:
    task = task_of(small_recipe(TOP_K))
    task.losses(0, 0, False)
    task.after_step()
    before = biases(task.model)
    task.evaluate()
    task.after_step()
    assert all(torch.equal(a, b) for a, b in zip(before, biases(task.model), strict=True))


def test_the_bias_alone_evens_the_loads_out(tmp_path: Path, small_recipe: Make) -> None:
    def busiest(step: float) -> float:
        run = tmp_path / str(step)
        settings = ("model.parts.num_parts=16", "train.steps=60", "optimizer.learning_rate=0.02", *NO_LOSS)
        train(small_recipe(f"model.router={{name='top_k', k=2, bias_step={step}}}", *settings), run, quiet)
        return max(max(load) for load in lines(run, "evaluation")[-1]["loads"])

    without, with_bias = busiest(0), busiest(0.01)
    assert without > 2.5
    assert with_bias < 0.75 * without


# --- hash -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory, small_recipe: Make) -> Path:
    run = tmp_path_factory.mktemp("hash") / "run"
    threads = torch.get_num_threads()
    train(small_recipe(HASH, *NO_LOSS, "train.steps=30"), run, quiet)
    torch.set_num_threads(threads)
    return run


def test_a_hash_run_learns_and_reports_no_balance(hashed: Path) -> None:
    losses = [line["loss"] for line in lines(hashed)]
    assert losses[-1] < losses[0] - 0.5
    assert not any(key.startswith("balance_") for line in lines(hashed) for key in line)
    assert lines(hashed, "evaluation")[-1]["parts_per_token"]["mean"] == 1.0


def test_hash_is_fixed_by_the_token_id_in_every_layer_and_place(hashed: Path) -> None:
    model = load(hashed)
    tokens = torch.randint(model.config.vocab_size, (3, 32), generator=torch.Generator().manual_seed(5))
    with recording(model) as mixtures, torch.no_grad():
        model(tokens)
    tables = [Hash(4, model.config.vocab_size, seed=0).table for _ in mixtures]
    for mixture, table in zip(mixtures, tables, strict=True):
        assert torch.equal(mixture.router.table, table), "training left the draw alone"
        assert mixture.last_routes.part_ids[:, 0].tolist() == [int(table[i]) for i in tokens.flatten()]


def test_hash_generates_with_a_cache_what_it_would_without(hashed: Path) -> None:
    model = load(hashed)
    prompt = torch.tensor([[3, 40, 41], [7, 7, 250]])
    tokens = prompt
    for _ in range(8):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(prompt, 8, temperature=0.0), tokens)


def test_a_balanced_hash_deals_out_by_the_training_text(tmp_path: Path, small_recipe: Make) -> None:
    recipe = small_recipe("model.router={name='hash', balanced=true}", *NO_LOSS)
    train(recipe, tmp_path / "run", quiet)
    prepared = prepare(recipe.data, recipe.tokenizer)
    frequencies = torch.zeros(prepared.vocab_size, dtype=torch.int64)
    for token in prepared.stream("train").tokens.tolist():
        frequencies[token] += 1
    model = load(tmp_path / "run")
    tables = [mixture.router.table for mixture in model.mixtures().values()]
    drawn = Hash(4, prepared.vocab_size).table
    even, random = (
        torch.zeros(4, dtype=torch.int64).index_add(0, table, frequencies) for table in (tables[0], drawn)
    )
    assert torch.equal(tables[0], tables[1])
    assert (even.max() - even.min()) / even.double().mean() < 0.02
    assert (random.max() - random.min()) / random.double().mean() > 0.1


def test_a_balanced_table_comes_back_from_the_run_itself(tmp_path: Path, small_recipe: Make) -> None:
    settings = ("model.router={name='hash', balanced=true}", *NO_LOSS)
    train(small_recipe(*settings, "train.steps=4"), tmp_path / "whole", quiet)
    train(small_recipe(*settings, "train.steps=2"), tmp_path / "cut", quiet)
    train(small_recipe(*settings, "train.steps=4"), tmp_path / "cut", quiet)
    assert state(tmp_path / "whole", 4) == state(tmp_path / "cut", 4)


# --- balance losses ---------------------------------------------------------------------------------------

COEFFICIENTS = ("expert", "device", "entropy", "z")


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_coefficient_reaches_the_gradient_and_never_the_reported_loss(
    small_recipe: Make, name: str
) -> None:
    groups = "balance.device_groups=2"
    gradients, reported = {}, {}
    for value in (0.0, 0.5):
        task = task_of(small_recipe(*NO_LOSS, groups, f"balance.{name}={value}"))
        losses = task.losses(0, 0, False)
        losses.total.backward()
        gradients[value] = task.model.mixtures()[0].router.weight.grad.clone()
        reported[value] = float(losses.reported["loss"].detach())
        if value:
            assert f"balance_{name}" in losses.reported
            expected = losses.reported["loss"] + value * 2 * losses.reported[f"balance_{name}"]
            torch.testing.assert_close(losses.total, expected)
    assert reported[0.0] == reported[0.5]
    assert (gradients[0.0] - gradients[0.5]).norm() > 1e-3 * gradients[0.0].norm()


def test_every_balance_loss_is_in_the_metrics_and_on_the_page(tmp_path: Path, small_recipe: Make) -> None:
    from expertise.report.language_model import optimizer
    from expertise.report.language_model_record import run_record

    settings = [f"balance.{name}=0.01" for name in COEFFICIENTS]
    recipe = small_recipe(TOP_K, *settings, "balance.device_groups=2", "balance.per=sequence")
    train(recipe, tmp_path / "run", quiet)
    for line in lines(tmp_path / "run"):
        assert {f"balance_{name}" for name in COEFFICIENTS} <= set(line)
    record = run_record(tmp_path / "run", device="cpu", say=quiet)
    titles = [chart["title"].partition(" ×")[0] for chart in optimizer(record)]
    assert [f"balance loss: {name}" for name in sorted(COEFFICIENTS)] == titles[:4]
    assert "largest bias in the choice" in titles


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_hash_router_can_serve_no_balance_loss(small_recipe: Make, name: str) -> None:
    with pytest.raises(RecipeError) as refused:
        small_recipe(HASH, *NO_LOSS, f"balance.{name}=0.01")
    assert refused.value.message == (
        f"balance.{name} needs a router that learns probabilities; 'hash' does not"
    )


def test_routes_without_probabilities_are_refused_in_python_too(small_recipe: Make) -> None:
    task = task_of(small_recipe(HASH, *NO_LOSS))
    batch = task._batches.batch(0, 0)
    with pytest.raises(RecipeError, match=r"balance\.expert needs a router that learns probabilities"):
        objective.losses(task.model, batch.tokens, batch.targets, BalanceConfig(expert=0.1))


def test_a_context_router_has_no_place_in_a_language_model(small_recipe: Make) -> None:
    with pytest.raises(RecipeError, match="'context' needs a context vector"):
        small_recipe("model.router={name='context', context_dim=3}")


def test_sigmoid_scores_train(tmp_path: Path, small_recipe: Make) -> None:
    router = "model.router={name='top_k', k=2, scores='sigmoid', normalize=true, bias_step=0.001}"
    train(small_recipe(router, "train.steps=30"), tmp_path / "run", quiet)
    model = load(tmp_path / "run")
    assert all(isinstance(m.router, TopK) and m.router.scores == "sigmoid" for m in model.mixtures().values())
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.5
    found = evaluate_run(tmp_path / "run", "validation", 400, "cpu", 1, quiet)
    assert found["bits_per_byte"] == lines(tmp_path / "run", "evaluation")[-1]["bits_per_byte"]
