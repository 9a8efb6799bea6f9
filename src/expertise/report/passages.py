"""Validation text whose tokens are coloured by the number of their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from expertise.report.colours import Scale, count_scale, value_scale
from expertise.report.counts import constant_counts, largest_count
from expertise.report.record import domains, layer_names, look, mean, rows

_ALL = "all"


def _count(token: Mapping[str, Any], layer: int) -> float:
    parts = rows(token, "parts")
    return float(len(parts[layer])) if layer < len(parts) else 0.0


def _gates(token: Mapping[str, Any], layer: int) -> float:
    gates = rows(token, "gates")
    return sum(float(gate) for gate in gates[layer]) if layer < len(gates) else 0.0


def _num_layers(record: Mapping[str, Any]) -> int:
    return max(
        [
            len(rows(token, "parts"))
            for passage in rows(record, "passages")
            for token in rows(passage, "tokens")
        ],
        default=0,
    )


def _scales(
    tokens: Sequence[Any], num_layers: int, measure: Callable[[Any, int], float], scale: Scale | None
) -> dict[str, Scale]:
    """A scale for each choice of layers; the single layers share one, so that they can be compared."""
    single = [measure(token, layer) for token in tokens for layer in range(num_layers)]
    shared = scale or value_scale(single)
    found = {str(layer): shared for layer in range(num_layers)}
    if num_layers > 1:
        means = [mean([measure(token, layer) for layer in range(num_layers)]) for token in tokens]
        found = {_ALL: value_scale(means), **found}
    return found


def _steps(
    tokens: Sequence[Any], scales: Mapping[str, Scale], measure: Callable[[Any, int], float]
) -> list[str]:
    """One digit per token, the step of the palette, for each choice of layers."""
    layers = [int(choice) for choice in scales if choice != _ALL]
    found = []
    for choice, scale in scales.items():
        chosen = layers if choice == _ALL else [int(choice)]
        found.append("".join(str(scale.step(mean([measure(token, i) for i in chosen]))) for token in tokens))
    return found


def passages(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The passages, the choices, the legends, and what the page's script must know; None without any."""
    found = [passage for passage in rows(record, "passages") if rows(passage, "tokens")]
    num_layers = _num_layers(record)
    if not found or not num_layers:
        return None
    same = constant_counts(record)
    # Where all tokens take as many parts, their number shows nothing: how much the parts weigh may.
    measure = _gates if same else _count
    everything = [token for passage in found for token in rows(passage, "tokens")]
    scales = _scales(everything, num_layers, measure, None if same else count_scale(largest_count(record)))
    names = layer_names(record)
    names += [f"layer {i}" for i in range(len(names), num_layers)]
    steps = [_steps(rows(passage, "tokens"), scales, measure) for passage in found]
    labels = [str(look(passage, "domain", default=f"passage {i + 1}")) for i, passage in enumerate(found)]
    return {
        "passages": [
            {
                "domain": label,
                "tokens": [
                    (str(look(token, "text", default="")), int(step))
                    for token, step in zip(rows(passage, "tokens"), digits[0], strict=True)
                ],
            }
            for label, passage, digits in zip(labels, found, steps, strict=True)
        ],
        "choices": [
            {
                "value": choice,
                "label": "all layers" if choice == _ALL else names[int(choice)],
                "legend": list(zip(scale.steps, scale.labels, strict=True)),
                "what": ("sum of the gates" if same else "experts")
                + (", mean of the layers" if choice == _ALL else ""),
            }
            for choice, scale in scales.items()
        ],
        "gates": bool(same),
        "data": {
            "choices": list(scales),
            "layers": names,
            "steps": steps,
            "parts": [[rows(token, "parts") for token in rows(passage, "tokens")] for passage in found],
            "gates": [
                [
                    [[round(float(g), 2) for g in layer] for layer in rows(token, "gates")]
                    for token in rows(p, "tokens")
                ]
                for p in found
            ],
            "domains": domains(record),
            "experts": _specialities(record),
        },
    }


def _specialities(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Per layer, the domain of each expert that has one clearly."""
    return [
        {
            str(part["id"]): str(part["domain"])
            for part in rows(layer, "parts")
            if look(part, "domain") is not None and float(look(part, "lift", default=0.0)) >= 1.3
        }
        for layer in rows(record, "layers")
    ]
