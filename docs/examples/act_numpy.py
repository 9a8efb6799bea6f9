"""Acts with what `expertise policy export RUN --to safetensors --out FOLDER` wrote; NumPy is enough."""

import hashlib
import json
import pathlib

import numpy as np
from safetensors.numpy import load


class Policy:  # a base, skills under any alpha, or a sum of noises; the first candidate is taken
    def __init__(self, folder):
        self.facts = json.loads(pathlib.Path(folder, "export.json").read_text())
        data = pathlib.Path(folder, self.facts["arrays"]["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == self.facts["arrays"]["sha256"], "the arrays are damaged"
        assert (self.facts["version"], self.facts["pick"]) == (1, "first"), "another version, or a critic"
        self.w = load(data)

    def act(self, observations, noise):  # [states, width], [sheets, states, action] → [states, action]
        actor, x = self.facts["actor"], noise[0]
        clip = actor["clip"] or np.inf
        for step, sheet in zip(actor["schedule"], np.roll(noise, -1, 0), strict=True):  # the last adds 0
            eps = self.noise_in(x, step["time"], observations, actor["predictor"])
            x = ((x - step["noise"] * eps) / step["kept"] + step["added"] * sheet).clip(-clip, clip)
        return x

    def noise_in(self, x, time, observations, part):
        seen = (observations - self.w[part["scale"] + ".mean"]) / self.w[part["scale"] + ".std"]
        alpha = self.run(part["alpha"], seen) if part["alpha"] else None  # [states, skills]
        if part["kind"] == "noises":
            noises = [self.noise_in(x, time, observations, member) for member in part["members"]]
            return sum(alpha[:, [i]] * noise for i, noise in enumerate(noises))
        row = np.tile(self.w[part["features"]][time], (len(x), 1))
        return self.run(part["steps"], np.hstack([x, seen, self.run(part["time"], row, alpha)]), alpha)

    def run(self, steps, x, alpha=None):  # rows through layers
        w = self.w
        for op, name, step in ((step["op"], step.get("name"), step) for step in steps):
            if op == "linear":
                given, x = x, x @ w[name + ".weight"].T + w.get(name + ".bias", np.float32(0))
                if "skills" in step:  # W0 x + b, and the sum over skills of alpha * scaling * B A x
                    ranks = alpha[:, w[name + ".owner"]] * w[name + ".scaling"]
                    x += ((given @ w[name + ".lora_A"].T) * ranks) @ w[name + ".lora_B"]
            elif op == "norm":
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + step["epsilon"])
                x = x * w[name + ".weight"] + w[name + ".bias"]
            elif op == "mish":
                x = x * np.tanh(np.logaddexp(0, x))
            elif op == "relu":
                x = np.maximum(x, 0)
            elif op == "residual":
                x = x + self.run(step["steps"], x, alpha)
            elif op == "top_p":
                x = np.exp(x - np.logaddexp.reduce(x, 1, keepdims=True))
                order = np.argsort(-x, axis=1, kind="stable")
                chances, gates = np.take_along_axis(x, order, 1), np.zeros_like(x)
                before = np.pad(chances.cumsum(1)[:, :-1], ((0, 0), (1, 0)))  # the sum of the greater ones
                np.put_along_axis(gates, order, (before <= step["p"]) * chances * step["strength"], 1)
                x = gates[:, : step["parts"]]
        return x
