"""Dispatches: ways to compute the sum over parts. Each is `(tokens, routes, parts) -> tokens`.

To add one, write its module and add a line here; the contract tests hold it against `reference`.
"""

from expertise.registry import Registry

DISPATCHES = Registry(
    "dispatch",
    {
        "reference": "expertise.mixture.dispatch.reference:reference",
        "grouped": "expertise.mixture.dispatch.grouped:grouped",
        "dense": "expertise.mixture.dispatch.dense:dense",
    },
)
