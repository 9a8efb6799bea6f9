"""Kinds of parts that a router chooses from. To add one, write its module and add a line here."""

from expertise.registry import Registry

PARTS = Registry(
    "kind of part",
    {
        "swiglu": "expertise.mixture.parts.swiglu:SwiGLUExperts",
        "low_rank": "expertise.mixture.parts.low_rank:LowRankExperts",
    },
    configs="expertise.mixture.parts.configs",
)
