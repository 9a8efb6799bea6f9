"""One critic: IQL for reward, or the pair that tells how safe a state and an action are."""

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
    """gamma (release: 0.99)."""
    expectile: Annotated[float, Gt(0), Lt(1)] = 0.7
    """Of Q under the data's actions that V is (release: 0.7; 0.9 for AntMaze)."""
    num_critics: Annotated[int, Ge(1)] = 2
    """Q networks; the least of them counts (release: 2)."""
    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers, ReLU between them (release: 256, 256)."""
    value_norm: bool = True
    """LayerNorm on what V is given (release: true in the launcher for skills, false in its configuration)."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005
    """How fast the target Q follows (release: tau = 0.005)."""
    enabled: bool = True
    """Whether there is this critic at all; false: as if the table were left out."""

    def __post_init__(self) -> None:
        _check("reward", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyCriticConfig:
    """The feasibility critics of FISOR (arXiv 2401.10700), as PSEC's release trains them for DSRL."""

    discount: Annotated[float, Ge(0), Le(1)] = 0.99
    """gamma (release: 0.99)."""
    expectile: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Weight of the Q below V, so that V is near the least Q under the data's actions (release: 0.9)."""
    violation: Annotated[float, Gt(0)] = 25.0
    """h where a transition costs something (release: cost_scale = 25)."""
    safe: Annotated[float, Lt(0)] = -1.0
    """h where it costs nothing (release: -1)."""
    num_critics: Annotated[int, Ge(1)] = 2
    """Q networks; the greatest of them counts (release: 2)."""
    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers, ReLU between them (release: 256, 256)."""
    value_norm: bool = True
    """LayerNorm on what V is given (release: true in the launcher for skills, false in its configuration)."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005
    """How fast the target Q follows (release: tau = 0.005)."""
    enabled: bool = True
    """Whether there is this critic at all; false, for data without costs: as if the table were left out."""

    def __post_init__(self) -> None:
        _check("safety", self)
        if not self.safe < 0 < self.violation:
            both = f"{self.violation} and {self.safe}"
            raise RecipeError(f"safety.violation must be positive and safety.safe negative, not {both}")


class Critic(nn.Module, abc.ABC):
    """Base of the critics: several Q of state and action, a slow copy of them, and V of the state.

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
        """The losses of Q and V; their sum is to be descended."""

    @abc.abstractmethod
    def action_value(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> Float[Tensor, " rows"]:
        """The slow Q of all networks together."""

    def state_value(self, observations: Float[Tensor, "rows observations"]) -> Float[Tensor, " rows"]:
        """V."""
        return self.v(observations).squeeze(1)  # type: ignore[no-any-return]

    def update_target(self) -> None:
        """Move the slow copy towards Q."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), self._target_rate)

    def _targets(self, observations: Tensor, actions: Tensor) -> Float[Tensor, "critics rows"]:
        joined = torch.cat([observations, actions], dim=1)
        return torch.stack([network(joined).squeeze(1) for network in self.target])

    def _q_loss(self, batch: Batch, wanted: Tensor) -> Tensor:
        """Mean squared error over rows and networks."""
        joined = torch.cat([batch.observations, batch.actions], dim=1)
        return torch.stack(
            [(network(joined).squeeze(1) - wanted).square().mean() for network in self.q]
        ).mean()


class RewardCritic(Critic):
    """IQL: V is an expectile of Q over the data's actions, so that no other action is ever asked about.

    V descends |tau - 1(u < 0)| u² with u = Q(s, a) - V(s) (Eq. 5), Q descends (r + gamma V(s') - Q(s, a))²
    (Eq. 6), where V's Q is the least of the slow ones. V and Q descend at once, each towards the other's
    values before the step; the release lets V go first. As tau nears 1, V nears the best value that the data
    supports.
    """

    def __init__(self, config: RewardCriticConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__(config, observation_dim, action_dim)
        self.config = config

    def action_value(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> Float[Tensor, " rows"]:
        """The least of the slow Q."""
        return self._targets(observations, actions).amin(0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`v_loss`, `q_loss`."""
        with torch.no_grad():
            q = self.action_value(batch.observations, batch.actions)
            following = self.state_value(batch.next_observations) * (1 - batch.terminals)
            wanted = batch.rewards + self._discount * following
        v_loss = expectile_loss(q - self.state_value(batch.observations), self.config.expectile)
        return {"v_loss": v_loss, "q_loss": self._q_loss(batch, wanted)}


class SafetyCritic(Critic):
    """How close the worst that is still to come is, if one acts as safely as the data shows.

    h is `violation` where a transition costs something and `safe` elsewhere. Q_c descends to
    (1 - gamma) h + gamma max(h, V_c(s')), or h where nothing follows; V_c is an expectile of Q_c with the
    greater weight on those below it: nearly the least. So V_c is near the reachability value of FISOR: the
    nearer a violation that cannot be avoided, the greater. The greatest of the slow Q_c counts.
    """

    def __init__(self, config: SafetyCriticConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__(config, observation_dim, action_dim)
        self.config = config

    def action_value(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> Float[Tensor, " rows"]:
        """The greatest of the slow Q_c."""
        return self._targets(observations, actions).amax(0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`v_loss`, `q_loss`.

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
        # The expectile of Q from below is one from above of -Q.
        v_loss = expectile_loss(self.state_value(batch.observations) - q, self.config.expectile)
        return {"v_loss": v_loss, "q_loss": self._q_loss(batch, wanted)}


def costs_of(batch: Batch) -> Float[Tensor, " rows"]:
    """The costs of transitions.

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
    """Mean of |expectile - 1(u < 0)| u² over differences u (IQL, Eq. 5)."""
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference.square()).mean()


def _mlp(width: int, hidden: list[int]) -> nn.Sequential:
    """Width → hidden … → 1, ReLU between, Xavier-uniform, biases at zero."""
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
