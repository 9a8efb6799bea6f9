"""Critics: IQL for reward, and the feasibility critics for safety."""

from __future__ import annotations

import abc
import copy
import dataclasses
import itertools
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from expertise.errors import DataError, RecipeError
from expertise.policy.batch import Batch
from expertise.shapes import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardCriticConfig:
    """IQL (arXiv 2110.06169). The defaults are those of PSEC's release for DSRL."""

    discount: Annotated[float, Ge(0), Le(1)] = 0.99
    """Discount factor gamma (release: 0.99)."""
    expectile: Annotated[float, Gt(0), Lt(1)] = 0.7
    """Expectile of Q under the data's actions that V learns (release: 0.7; 0.9 for AntMaze)."""
    num_critics: Annotated[int, Ge(1)] = 2
    """Number of Q networks, whose minimum is used (release: 2)."""
    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers, ReLU between them (release: 256, 256)."""
    value_norm: bool = True
    """Apply LayerNorm to the input of V (release: true in the launcher for skills, else false)."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005
    """Rate at which the target Q follows Q (release: tau = 0.005)."""
    enabled: bool = True
    """Train this critic; false: as if the table were left out."""

    def __post_init__(self) -> None:
        _check("reward", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyCriticConfig:
    """The feasibility critics of FISOR (arXiv 2401.10700), as PSEC's release trains them for DSRL."""

    discount: Annotated[float, Ge(0), Le(1)] = 0.99
    """Discount factor gamma (release: 0.99)."""
    expectile: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Weight of the Q below V, so that V is near the least Q under the data's actions (release: 0.9)."""
    violation: Annotated[float, Gt(0)] = 25.0
    """h of a transition that has a cost (release: cost_scale = 25)."""
    safe: Annotated[float, Lt(0)] = -1.0
    """h of a transition without a cost (release: -1)."""
    num_critics: Annotated[int, Ge(1)] = 2
    """Number of Q networks, whose maximum is used (release: 2)."""
    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers, ReLU between them (release: 256, 256)."""
    value_norm: bool = True
    """Apply LayerNorm to the input of V (release: true in the launcher for skills, else false)."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005
    """Rate at which the target Q follows Q (release: tau = 0.005)."""
    enabled: bool = True
    """Train this critic; false, for data without costs: as if the table were left out."""

    def __post_init__(self) -> None:
        _check("safety", self)
        if not self.safe < 0 < self.violation:
            both = f"{self.violation} and {self.safe}"
            raise RecipeError(f"safety.violation must be positive and safety.safe negative, not {both}")


class Critic(nn.Module, abc.ABC):
    """Base of the critics: Q networks of state and action, their target copies, and V of the state.

    Args:
        config: sizes and constants.
        observation_dim: width of an observation.
        action_dim: width of an action.
    """

    def __init__(
        self, config: RewardCriticConfig | SafetyCriticConfig, observation_dim: int, action_dim: int
    ) -> None:
        super().__init__()
        if config.value_norm and observation_dim == 1:
            raise RecipeError(
                "a LayerNorm leaves nothing of an observation of width 1",
                "set the critic's value_norm to false",
            )
        joined = observation_dim + action_dim
        self.q = nn.ModuleList(_mlp(joined, config.hidden) for _ in range(config.num_critics))
        norm = [nn.LayerNorm(observation_dim, eps=1e-6)] if config.value_norm else []
        self.v = nn.Sequential(*norm, _mlp(observation_dim, config.hidden))
        self.target = copy.deepcopy(self.q).requires_grad_(requires_grad=False)
        self._discount = config.discount
        self._target_rate = config.target_rate

    @abc.abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of Q and V; their sum is minimised."""

    @abc.abstractmethod
    def action_value(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> Float[Tensor, " rows"]:
        """Return the target Q, all networks combined."""

    def state_value(self, observations: Float[Tensor, "rows observations"]) -> Float[Tensor, " rows"]:
        """Return V of each observation."""
        return self.v(observations).squeeze(1)  # type: ignore[no-any-return]

    def update_target(self) -> None:
        """Move the target copy towards Q."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), self._target_rate)

    def _targets(self, observations: Tensor, actions: Tensor) -> Float[Tensor, "critics rows"]:
        joined = torch.cat([observations, actions], dim=1)
        return torch.stack([network(joined).squeeze(1) for network in self.target])

    def _q_loss(self, batch: Batch, wanted: Tensor) -> Tensor:
        """Compute the mean squared error over rows and networks."""
        joined = torch.cat([batch.observations, batch.actions], dim=1)
        return torch.stack(
            [(network(joined).squeeze(1) - wanted).square().mean() for network in self.q]
        ).mean()


class RewardCritic(Critic):
    """IQL: V is an expectile of Q over the data's actions, so Q is never evaluated at other actions.

    V minimises |tau - 1(u < 0)| u² with u = Q(s, a) - V(s) (Eq. 5), Q minimises (r + gamma V(s') - Q(s, a))²
    (Eq. 6), where V uses the minimum of the target Qs. V and Q are updated at once, each from the other's
    values before the step; the release updates V first. As tau nears 1, V nears the best value that the data
    supports.
    """

    def __init__(self, config: RewardCriticConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__(config, observation_dim, action_dim)
        self.config = config

    def action_value(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> Float[Tensor, " rows"]:
        """Return the minimum of the target Qs."""
        return self._targets(observations, actions).amin(0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return `v_loss` and `q_loss`."""
        with torch.no_grad():
            q = self.action_value(batch.observations, batch.actions)
            following = self.state_value(batch.next_observations) * (1 - batch.terminals)
            wanted = batch.rewards + self._discount * following
        v_loss = expectile_loss(q - self.state_value(batch.observations), self.config.expectile)
        return {"v_loss": v_loss, "q_loss": self._q_loss(batch, wanted)}


class SafetyCritic(Critic):
    """Feasibility critics: the worst discounted h in the future, acting as safely as the data shows.

    h is `violation` if a transition has a cost and `safe` otherwise. Q_c is fitted to
    (1 - gamma) h + gamma max(h, V_c(s')), or to h if nothing follows; V_c is an expectile of Q_c with the
    larger weight on values below it: nearly the minimum. So V_c is near the reachability value of FISOR: the
    nearer a violation that cannot be avoided, the larger. The maximum of the target Q_c is used.
    """

    def __init__(self, config: SafetyCriticConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__(config, observation_dim, action_dim)
        self.config = config

    def action_value(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> Float[Tensor, " rows"]:
        """Return the maximum of the target Q_c."""
        return self._targets(observations, actions).amax(0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return `v_loss` and `q_loss`.

        Raises:
            DataError: the data has no costs.
        """
        costs = costs_of(batch)
        with torch.no_grad():
            q = self.action_value(batch.observations, batch.actions)
            h = torch.where(costs > 0, self.config.violation, self.config.safe)
            ahead = (1 - self._discount) * h + self._discount * h.maximum(
                self.state_value(batch.next_observations)
            )
            wanted = torch.where(batch.terminals > 0, h, ahead)
        # An expectile of Q from below is one of -Q from above.
        v_loss = expectile_loss(self.state_value(batch.observations) - q, self.config.expectile)
        return {"v_loss": v_loss, "q_loss": self._q_loss(batch, wanted)}


def costs_of(batch: Batch) -> Float[Tensor, " rows"]:
    """Return the costs of transitions.

    Raises:
        DataError: the data has none.
    """
    if batch.costs is None:
        raise DataError(
            "the safety critics need costs, which this data does not have",
            "set critics.safety.enabled = false to learn the critic of reward alone",
        )
    return batch.costs


def expectile_loss(difference: Float[Tensor, " rows"], expectile: float) -> Float[Tensor, ""]:
    """Return the mean of |expectile - 1(u < 0)| u² over differences u (IQL, Eq. 5)."""
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference.square()).mean()


def _mlp(width: int, hidden: list[int]) -> nn.Sequential:
    """Build an MLP: width → hidden … → 1, ReLU between, Xavier-uniform, biases at zero."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise([width, *hidden, 1]):
        layer = nn.Linear(width_in, width_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _check(critic: str, config: RewardCriticConfig | SafetyCriticConfig) -> None:
    if not 0 < config.expectile < 1:
        raise RecipeError(f"{critic}.expectile must lie between 0 and 1, not {config.expectile}")
    if not (0 <= config.discount <= 1 and 0 < config.target_rate <= 1):
        both = f"{config.discount} and {config.target_rate}"
        raise RecipeError(f"{critic}.discount and {critic}.target_rate must lie within 0 and 1, not {both}")
    if config.num_critics < 1 or any(width < 1 for width in config.hidden):
        both = f"{config.num_critics} and {config.hidden}"
        raise RecipeError(f"{critic}.num_critics and {critic}.hidden must be positive, not {both}")
