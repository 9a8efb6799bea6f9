"""Acts with what `expertise policy export RUN --to safetensors --out FOLDER` wrote; NumPy is enough."""

import hashlib
import json
import pathlib

import numpy as np
from safetensors.numpy import load


class Policy:  # a base, skills under any alpha, a sum of noises; any pick. Not: ONNX folders, ASEC, direct
    def __init__(self, folder):
        self.facts = facts = json.loads(pathlib.Path(folder, "export.json").read_text())
        known = (facts["version"], facts.get("actor", {}).get("kind")) == (1, "sampler")
        assert known, "this example takes exports --to safetensors, of version 1, not of kind asec or direct"
        data = pathlib.Path(folder, facts["arrays"]["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == facts["arrays"]["sha256"], "the arrays are damaged"
        self.w = load(data)

    def act(self, observations, noise):  # [states, width], [sheets, states, candidates, action]
        states, number, actor, crit = *noise.shape[1:3], self.facts["actor"], self.facts["critic"]
        rows, clip, best = np.repeat(observations, number, 0), actor["clip"] or np.inf, 0
        x, *sheets = noise.reshape(len(noise), states * number, -1)
        for step, sheet in zip(actor["schedule"], [*sheets, 0], strict=True):
            eps = self.noise_in(x, step["time"], rows, actor["predictor"])
            x = ((x - step["noise"] * eps) / step["kept"] + step["added"] * sheet).clip(-clip, clip)
        if crit:  # the critic: of the least Q the greatest; of the greatest Q of cost the least
            joined = np.hstack([(rows - self.w[crit["scale"] + ".mean"]) / self.w[crit["scale"] + ".std"], x])
            q = [(1 if crit["best"] == "greatest" else -1) * self.run(n, joined) for n in crit["networks"]]
            best = np.min(q, 0).reshape(states, number).argmax(1)
        return x.reshape(states, number, -1)[np.arange(states), best]  # [states, action]

    def noise_in(self, x, time, rows, part):
        seen = (rows - self.w[part["scale"] + ".mean"]) / self.w[part["scale"] + ".std"]
        alpha = self.run(part["alpha"], seen) if part["alpha"] else None  # [rows, skills]
        if part["kind"] == "noises":
            return sum(alpha[:, [i]] * self.noise_in(x, time, rows, m) for i, m in enumerate(part["members"]))
        row = np.tile(self.w[part["features"]][time], (len(x), 1))
        return self.run(part["steps"], np.hstack([x, seen, self.run(part["time"], row, alpha)]), alpha)

    def run(self, steps, x, alpha=None):  # rows through layers
        for op, name, step, w in ((step["op"], step.get("name"), step, self.w) for step in steps):
            if op == "linear":
                given, x = x, x @ w[name + ".weight"].T + w.get(name + ".bias", np.float32(0))
                if "skills" in step:  # W0 x + b, and the sum over skills of alpha * scaling * B A x
                    ranks = alpha[:, w[name + ".owner"]] * w[name + ".scaling"]
                    x += ((given @ w[name + ".lora_A"].T) * ranks) @ w[name + ".lora_B"]
            elif op == "norm":
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + step["epsilon"])
                x = x * w[name + ".weight"] + w[name + ".bias"]
            elif op in ("mish", "relu"):
                x = x * np.tanh(np.logaddexp(0, x)) if op == "mish" else np.maximum(x, 0)
            elif op == "residual":
                x = x + self.run(step["steps"], x, alpha)
            elif op == "top_p":  # each as long as the sum of the greater ones is within p
                order, x = np.argsort(-x, 1, kind="stable"), np.exp(x - np.logaddexp.reduce(x, 1)[:, None])
                chances = np.take_along_axis(x, order, 1)
                gates = (chances.cumsum(1) - chances <= step["p"]) * chances * step["strength"]
                x = np.take_along_axis(gates, np.argsort(order, 1), 1)[:, : step["parts"]]
        return x
