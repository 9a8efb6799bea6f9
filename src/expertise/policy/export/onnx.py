"""A policy as one ONNX graph: alpha, all steps of the sampler, and the choice of a candidate.

Written node by node from a description, so nothing is traced and PyTorch's exporter is not needed.

policy.onnx     `observations [states, O]`, `noise [sheets, states, candidates, A]` → `actions [states, A]`
                and `alpha [states, K]`, if the policy has weights; all float32
export.json     names, widths, the sheets of noise, SHA-256 of the graph
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expertise.errors import RunError
from expertise.policy.acting import Policy
from expertise.policy.export.arrays import DOCUMENT
from expertise.policy.export.describe import Described
from expertise.policy.export.graph import Graph
from expertise.policy.extras import needed
from expertise.runs.files import sha256_of

GRAPH = "policy.onnx"
TOLERANCE = 1e-3
"""Largest difference of actions with which a graph is still written; rounding alone stays far below."""

CLOSE = 1e-5
"""Bound of the rounding of a trained policy. With new weights it may be about 5e-5: PyTorch itself differs
then by up to 3e-5 from float64."""

_END = 2**31 - 1
"""End of a slice that goes to the end."""

_STATES = 32
"""Number of random states on which the graph is compared with the policy."""


def write(described: Described, policy: Policy, folder: Path) -> dict[str, Any]:
    """Write the graph to a folder, after comparing its actions with the policy's.

    Args:
        described: description of the policy.
        policy: the policy to compare with.
        folder: the folder to write to.

    Returns:
        `files`, and `largest_difference` between an action of the graph and of the policy, on made-up states.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        RunError: the graph's actions differ from the policy's.
    """
    model = model_of(described).SerializeToString()
    difference = _difference(model, policy, described.document["pick"])
    if not difference <= TOLERANCE:
        raise RunError(f"the exported graph would act otherwise: actions differ by {difference:.2g}")
    (folder / GRAPH).write_bytes(model)
    digest = sha256_of(folder / GRAPH)
    facts = {key: value for key, value in described.document.items() if key not in ("actor", "critic")}
    text = json.dumps({**facts, "graph": {"file": GRAPH, "sha256": digest}}, indent=1)
    (folder / DOCUMENT).write_text(text + "\n", "utf-8")
    return {
        "files": {GRAPH: digest, DOCUMENT: sha256_of(folder / DOCUMENT)},
        "largest_difference": difference,
    }


def model_of(described: Described) -> Any:
    """Build the ONNX model of a policy.

    Raises:
        MissingExtra: onnx is not installed.
    """
    document, graph = described.document, Graph(described.arrays)
    width, names = document["action_dim"], document["names"]
    acting = _Acting(graph, width, several=document["critic"] is not None)
    candidates = acting.actor(document["actor"])
    actions = acting.chosen(document["critic"], candidates)
    graph.rename(graph.node("Reshape", actions, graph.constant([-1, width])), "actions")
    inputs = [
        ("observations", ["states", document["observation_dim"]]),
        ("noise", [document["sheets"], "states", "candidates", width]),
    ]
    outputs: list[tuple[str, list[Any]]] = [("actions", ["states", width])]
    if names:
        weighing = document["actor"].get("predictor", document["actor"])
        graph.rename(acting.alpha(weighing), "alpha")
        outputs.append(("alpha", ["states", len(names)]))
    return graph.model(inputs, outputs, {key: document[key] for key in ("kind", "names", "pick", "sheets")})


class _Acting:
    """Adds the nodes of a policy around its networks: sampler, alpha and choice.

    Args:
        graph: the graph to add to.
        width: width of an action.
        several: True if more than the first candidate is used; else only that one is computed.
    """

    def __init__(self, graph: Graph, width: int, several: bool) -> None:
        self._graph, self._width, self._several = graph, width, several
        self._noise = "noise" if several else self._part("noise", 0, 1, axis=2)

    def actor(self, actor: Mapping[str, Any]) -> str:
        """Add the nodes that compute candidates `[states * candidates, width]`."""
        if actor["kind"] == "sampler":
            return self._sampler(actor)
        if actor["kind"] == "actions":
            return self._clipped(self._sum(actor, [self.actor(member) for member in actor["members"]]), 1.0)
        return self._clipped(self._direct(actor), 1.0)

    def alpha(self, part: Mapping[str, Any]) -> str:
        """Add the nodes that compute alpha `[states, parts]`."""
        return self._graph.run(part["alpha"], self._seen(part["scale"]))

    def chosen(self, critic: Mapping[str, Any] | None, candidates: str) -> str:
        """Add the nodes that choose one candidate per state."""
        if critic is None:
            return candidates
        graph = self._graph
        seen = self._rows(self._seen(critic["scale"]))
        joined = graph.node("Concat", seen, candidates, axis=1)
        values = [graph.run(steps, joined) for steps in critic["networks"]]
        value = graph.node({"least": "Min", "greatest": "Max"}[critic["joined"]], *values)
        value = graph.node("Reshape", value, self._sizes())
        best = graph.node({"least": "ArgMin", "greatest": "ArgMax"}[critic["best"]], value, axis=1)
        shape = graph.node("Concat", self._sizes(), graph.constant([self._width]), axis=0)
        return graph.node("GatherND", graph.node("Reshape", candidates, shape), best, batch_dims=1)

    def _sampler(self, actor: Mapping[str, Any]) -> str:
        graph, x = self._graph, self._sheet(0)
        for sheet, step in enumerate(actor["schedule"], 1):
            eps = self._noise_in(x, step["time"], actor["predictor"])
            x = graph.node("Sub", x, graph.arithmetic("Mul", eps, step["noise"]))
            x = graph.arithmetic("Div", x, step["kept"])
            if step["time"]:
                x = graph.node("Add", x, graph.arithmetic("Mul", self._sheet(sheet), step["added"]))
            if actor["clip"]:
                x = self._clipped(x, actor["clip"])
        return x

    def _noise_in(self, x: str, time: int, part: Mapping[str, Any]) -> str:
        graph = self._graph
        if part["kind"] == "noises":
            return self._sum(part, [self._noise_in(x, time, member) for member in part["members"]])
        alpha = self._rows(self.alpha(part)) if part["alpha"] else ""
        row = graph.run(part["time"], graph.row(part["features"], time), alpha)
        # Without skills all states share one row.
        height = graph.node("Concat", graph.node("Shape", x, end=1), graph.constant([1]), axis=0)
        row = graph.node("Expand", row, height)
        joined = graph.node("Concat", x, self._rows(self._seen(part["scale"])), row, axis=1)
        return graph.run(part["steps"], joined, alpha)

    def _direct(self, actor: Mapping[str, Any]) -> str:
        graph = self._graph
        mean = self._rows(graph.run(actor["steps"], self._seen(actor["scale"])))
        if not self._several:
            return mean  # the first candidate
        first, others = (self._part(self._noise, *span, axis=2) for span in ((0, 1), (1, _END)))
        noise = graph.node("Concat", graph.arithmetic("Mul", first, 0.0), others, axis=2)
        away = graph.node("Mul", self._flat(noise), graph.named(actor["std"]))
        return graph.node("Add", mean, away)

    def _sum(self, part: Mapping[str, Any], members: list[str]) -> str:
        """Add the nodes that sum members `[rows, width]` with the weights alpha."""
        graph, alpha = self._graph, self._rows(self.alpha(part))
        weighed = [
            graph.node("Mul", self._part(alpha, index, index + 1, axis=1), member)
            for index, member in enumerate(members)
        ]
        return functools.reduce(lambda one, other: graph.node("Add", one, other), weighed)

    def _seen(self, scale: str) -> str:
        mean, std = (self._graph.named(f"{scale}.{part}") for part in ("mean", "std"))
        return self._graph.node("Div", self._graph.node("Sub", "observations", mean), std)

    def _rows(self, x: str) -> str:
        """Repeat rows per state `[states, …]` for each candidate."""
        if not self._several:
            return x
        graph = self._graph
        x = graph.node("Unsqueeze", x, graph.constant([1]))
        shape = graph.node("Concat", self._sizes(), graph.constant([1]), axis=0)
        x = graph.node("Expand", x, shape)
        wide = graph.node("Concat", graph.constant([-1]), graph.node("Shape", x, start=2), axis=0)
        return graph.node("Reshape", x, wide)

    def _sizes(self) -> str:
        """Name of the sizes [states, candidates]."""
        return self._graph.node("Shape", self._noise, start=1, end=3)

    def _sheet(self, number: int) -> str:
        """Name of a sheet of noise, [rows, width]."""
        return self._flat(self._part(self._noise, number, number + 1, axis=0))

    def _flat(self, x: str) -> str:
        return self._graph.node("Reshape", x, self._graph.constant([-1, self._width]))

    def _part(self, x: str, start: int, stop: int, axis: int) -> str:
        return self._graph.node("Slice", x, *(self._graph.constant([n]) for n in (start, stop, axis)))

    def _clipped(self, x: str, bound: float) -> str:
        return self._graph.node("Clip", x, self._graph.constant(-bound), self._graph.constant(bound))


def _difference(model: bytes, policy: Policy, pick: str) -> float:
    """The largest difference between an action of the graph and of the policy."""
    runtime = needed("onnxruntime", "a policy as ONNX", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    dice = torch.Generator().manual_seed(0)
    scale = policy.scale
    drawn = torch.randn(_STATES, policy.observation_dim, generator=dice).to(scale.mean)
    observations = scale.mean + scale.std * drawn
    noise = policy.draw(_STATES, policy.num_candidates, dice)
    given = {"observations": observations.cpu().numpy(), "noise": noise.cpu().numpy()}
    (actions,) = session.run(["actions"], given)
    expected = policy.act(observations, noise=noise, pick=pick).cpu().numpy()
    return float(np.abs(actions - expected).max())
