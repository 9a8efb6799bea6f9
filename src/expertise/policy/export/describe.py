"""A policy as a document of plain values and named arrays: all that acting needs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from torch import nn

from expertise.errors import RecipeError
from expertise.policy.acting import CRITIC_OF, DenoisingPolicy, Policy, require_acting
from expertise.policy.baselines.actions import ActionComposition
from expertise.policy.baselines.direct import DirectPolicy
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.batch import Scale
from expertise.policy.compose import ComposedPolicy
from expertise.policy.critic import RewardCritic
from expertise.policy.export.steps import Arrays, alpha_of, network_of, steps_of
from expertise.policy.network import Denoiser
from expertise.policy.policy import DiffusionPolicy

VERSION = 1
"""Of the document. Raised when old readers would act otherwise than they should."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """A policy without PyTorch."""

    document: dict[str, Any]
    """How the arrays are put together; for JSON."""
    arrays: dict[str, np.ndarray]
    """Name → float32 or int64."""


def describe(policy: Policy, pick: str | None = None) -> Described:
    """What a policy computes to act.

    The document holds `observation_dim`, `action_dim`, `num_candidates`, `pick`, `sheets` (of noise), `names`
    (what alpha weighs up), and:

    - `actor`: noise `[sheets, states, candidates, actions]` → candidates. `kind` "sampler" runs `schedule`
      from the first entry to the last: x becomes `(x - noise * eps) / kept`, plus `added` times the next
      sheet, cut to ±`clip` (0: not cut). eps is what `predictor` says: a "network", with weights of skills
      if `alpha` is there, or "noises", the sum of its `members` weighed by `alpha`. "actions" is the sum of
      what `members` make of the same noise, cut to ±1. "direct" is a mean, for candidates after the first
      plus `std` times the noise, cut to ±1.
    - `critic`: null, or how one candidate is chosen: the `best` ("greatest" or "least") value, which is the
      `joined` ("least" or "greatest") one of the `networks` on [scaled observation, action].

    Steps are those of `export.steps`. An observation enters a network as `(s - mean) / std`, from
    `<scale>.mean` and `<scale>.std`.

    Args:
        policy: any kind but one whose skill still learns.
        pick: which candidate is taken; None: the policy's own way.

    Raises:
        RecipeError: there are no words for a part of the policy, or it lacks the critic that `pick` needs.
    """
    pick = policy.pick if pick is None else pick
    require_acting(pick=pick)
    arrays = Arrays()
    document = {
        "format": "expertise policy",
        "version": VERSION,
        "kind": policy.kind,
        "observation_dim": policy.observation_dim,
        "action_dim": policy.action_dim,
        "num_candidates": policy.num_candidates,
        "pick": pick,
        "sheets": policy.num_sheets,
        "names": list(policy.names),
        "actor": _actor(policy, "actor", arrays),
        "critic": _critic(policy, pick, arrays),
    }
    return Described(document=document, arrays=dict(arrays))


@functools.singledispatch
def _actor(policy: Policy, name: str, arrays: Arrays) -> dict[str, Any]:
    raise _unknown(policy)


@_actor.register(DenoisingPolicy)
def _(policy: DenoisingPolicy, name: str, arrays: Arrays) -> dict[str, Any]:
    return {
        "kind": "sampler",
        "clip": policy.diffusion.config.clip,
        "schedule": policy.diffusion.schedule(),
        "predictor": _predictor(policy, name, arrays),
    }


@_actor.register(ActionComposition)
def _(policy: ActionComposition, name: str, arrays: Arrays) -> dict[str, Any]:
    return {"kind": "actions", **_weighed(policy, policy.members, _actor, name, arrays)}


@_actor.register(DirectPolicy)
def _(policy: DirectPolicy, name: str, arrays: Arrays) -> dict[str, Any]:
    return {
        "kind": "direct",
        "scale": _scale(policy.scale, name, arrays),
        "steps": steps_of(policy.network, f"{name}.network", arrays),
        "std": arrays.put(f"{name}.std", policy.std()),
    }


@functools.singledispatch
def _predictor(policy: DenoisingPolicy, name: str, arrays: Arrays) -> dict[str, Any]:
    raise _unknown(policy)


@_predictor.register(DiffusionPolicy)
def _(policy: DiffusionPolicy, name: str, arrays: Arrays) -> dict[str, Any]:
    return _network(policy, policy.acting, name, arrays)


@_predictor.register(ComposedPolicy)
def _(policy: ComposedPolicy, name: str, arrays: Arrays) -> dict[str, Any]:
    assert isinstance(policy.network, Denoiser)
    alpha = alpha_of(policy.alpha, policy.observation_dim, f"{name}.alpha", arrays)
    return {**_network(policy, policy.network, name, arrays), "alpha": alpha}


@_predictor.register(NoiseComposition)
def _(policy: NoiseComposition, name: str, arrays: Arrays) -> dict[str, Any]:
    return {"kind": "noises", **_weighed(policy, policy.members, _predictor, name, arrays)}


def _network(policy: DenoisingPolicy, network: Denoiser, name: str, arrays: Arrays) -> dict[str, Any]:
    return {
        "kind": "network",
        "scale": _scale(policy.scale, name, arrays),
        "alpha": None,
        **network_of(network, policy.diffusion.num_steps, f"{name}.network", arrays),
    }


def _weighed(
    policy: ActionComposition | NoiseComposition, members: nn.ModuleList, of: Any, name: str, arrays: Arrays
) -> dict[str, Any]:
    return {
        "scale": _scale(policy.scale, name, arrays),
        "alpha": alpha_of(policy.alpha, policy.observation_dim, f"{name}.alpha", arrays),
        "members": [of(member, f"{name}.members.{index}", arrays) for index, member in enumerate(members)],
    }


def _scale(scale: Scale, name: str, arrays: Arrays) -> str:
    arrays.put(f"{name}.scale.mean", scale.mean)
    arrays.put(f"{name}.scale.std", scale.std)
    return f"{name}.scale"


def _critic(policy: Policy, pick: str, arrays: Arrays) -> dict[str, Any] | None:
    wanted = CRITIC_OF[pick]
    if not wanted:
        return None
    found = {} if policy.critics is None else policy.critics.each()
    if policy.critics is None or wanted not in found:
        raise RecipeError(
            f"pick {pick!r} needs a critic of {wanted}, and the policy has none",
            'or export with pick "first"',
        )
    critic = found[wanted]
    reward = isinstance(critic, RewardCritic)
    return {
        "name": wanted,
        "best": "greatest" if reward else "least",
        "joined": "least" if reward else "greatest",
        "scale": _scale(policy.critics.scale, "critic", arrays),
        "networks": [
            steps_of(network, f"critic.networks.{index}", arrays)
            for index, network in enumerate(critic.target)
        ],
    }


def _unknown(policy: Policy) -> RecipeError:
    return RecipeError(
        f"a policy of kind {policy.kind!r} cannot be exported",
        "where a skill was learnt: compose it with its base first, and export that",
    )
