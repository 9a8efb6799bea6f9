"""Nodes and constants of an ONNX graph, and the steps of a policy's networks as such nodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from expertise.policy.export.steps import Step
from expertise.policy.extras import needed

OPSET, IR_VERSION = 17, 8
"""Of 2022: LayerNormalization is there, and runtimes since then read it."""


class Graph:
    """Nodes and constants as they are collected.

    Args:
        arrays: the policy's, by name; those that are used become constants of the graph.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._helper = needed("onnx.helper", "a policy as ONNX", "onnx")
        self._tensors = needed("onnx.numpy_helper", "a policy as ONNX", "onnx")
        self._arrays = arrays
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._made: dict[tuple[Any, ...], str] = {}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its first output. A node that is there already is not made twice."""
        return self.nodes(op, *inputs, **attributes)[0]

    def nodes(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """The same, all outputs."""
        key = (op, inputs, outputs, repr(sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = f"{op.lower()}_{len(self._nodes)}"
            names = self._outputs(self._made[key], outputs)
            self._nodes.append(self._helper.make_node(op, list(inputs), names, **attributes))
        return self._outputs(self._made[key], outputs)

    def named(self, name: str) -> str:
        """One of the policy's arrays."""
        if name not in self._constants:
            self._constants[name] = self._tensors.from_array(self._arrays[name], name)
        return name

    def row(self, name: str, index: int) -> str:
        """One row of an array, `[1, width]`."""
        return self.constant(self._arrays[name][index : index + 1])

    def constant(self, values: float | Sequence[int] | np.ndarray) -> str:
        """A constant: a number as float32, integers as int64."""
        array = np.asarray(values, np.float32 if isinstance(values, float) else None)
        what = f"{array.dtype} {array.shape}".encode() + array.tobytes()
        name = f"constant_{hashlib.sha256(what).hexdigest()[:16]}"
        if name not in self._constants:
            self._constants[name] = self._tensors.from_array(array, name)
        return name

    def arithmetic(self, op: str, x: str, number: float) -> str:
        """x and a number."""
        return self.node(op, x, self.constant(float(number)))

    def rename(self, name: str, wanted: str) -> None:
        """Give an output of the graph its name."""
        self._nodes.append(self._helper.make_node("Identity", [name], [wanted]))

    def run(self, steps: Sequence[Step], x: str, alpha: str = "") -> str:
        """Rows through steps; see `export.steps`."""
        for step in steps:
            x = getattr(self, f"_{step['op']}")(step, x, alpha)
        return x

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], facts: dict[str, Any]) -> Any:
        """The whole, checked.

        Args:
            inputs: name and shape of each, float32.
            outputs: the same.
            facts: noted in the file, as JSON.
        """
        helper, kind = self._helper, needed("onnx", "a policy as ONNX", "onnx").TensorProto.FLOAT
        ends = [
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in each]
            for each in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "policy", *ends, list(self._constants.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="expertise",
        )
        helper.set_model_props(model, {"expertise": json.dumps(facts)})
        needed("onnx.checker", "a policy as ONNX", "onnx").check_model(model, full_check=True)
        return model

    @staticmethod
    def _outputs(name: str, number: int) -> list[str]:
        return [name, *(f"{name}_{index}" for index in range(1, number))]

    def _linear(self, step: Step, x: str, alpha: str) -> str:
        name = step["name"]
        bias = [self.named(f"{name}.bias")] if f"{name}.bias" in self._arrays else []
        y = self.node("Gemm", x, self.named(f"{name}.weight"), *bias, transB=1)
        if "skills" not in step:
            return y
        low = self.node("Gemm", x, self.named(f"{name}.lora_A"), transB=1)
        low = self.node("Mul", low, self._ranks(name, alpha))
        return self.node("Add", y, self.node("MatMul", low, self.named(f"{name}.lora_B")))

    def _ranks(self, name: str, alpha: str) -> str:
        """Weights of the ranks: layers that are alike share them, and all steps of the sampler do."""
        owner, scaling = (self.constant(self._arrays[f"{name}.{part}"]) for part in ("owner", "scaling"))
        return self.node("Mul", self.node("Gather", alpha, owner, axis=1), scaling)

    def _norm(self, step: Step, x: str, alpha: str) -> str:
        weight, bias = (self.named(f"{step['name']}.{part}") for part in ("weight", "bias"))
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=step["epsilon"])

    def _mish(self, step: Step, x: str, alpha: str) -> str:
        return self.node("Mul", x, self.node("Tanh", self.node("Softplus", x)))

    def _relu(self, step: Step, x: str, alpha: str) -> str:
        return self.node("Relu", x)

    def _tanh(self, step: Step, x: str, alpha: str) -> str:
        return self.node("Tanh", x)

    def _residual(self, step: Step, x: str, alpha: str) -> str:
        return self.node("Add", x, self.run(step["steps"], x, alpha))

    def _top_p(self, step: Step, x: str, alpha: str) -> str:
        chances = self.node("Softmax", x, axis=1)
        count = self.constant([step["columns"]])
        # Equal ones come by the lower index, as everywhere here.
        greatest, ids = self.nodes("TopK", chances, count, outputs=2, axis=1)
        before = self.node("CumSum", greatest, self.constant(np.array(1)), exclusive=1)
        kept = self.node("LessOrEqual", before, self.constant(float(step["p"])))
        gates = self.node(
            "Where", kept, self.arithmetic("Mul", greatest, step["strength"]), self.constant(0.0)
        )
        gates = self.node("ScatterElements", self.arithmetic("Mul", chances, 0.0), ids, gates, axis=1)
        columns = (self.constant([value]) for value in (0, step["parts"], 1))
        return self.node("Slice", gates, *columns)
