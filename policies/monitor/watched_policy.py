"""A policy that also notes how far each decision is from what it learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.planner import SEEN, PrefixArrays
from policies.action_codec import ActionCodec
from policies.conditioning import Conditioning, split
from policies.monitor.density import Density, embedding
from policies.monitor.scores import SCORES, Decision, Probe, Score
from policies.policy import Policy
from policies.representation.config import ActionConfig
from policies.representation.represent import Representation


def possible(policy: Policy, execution: ExecutionConfig) -> list[str]:
    """The scores that this policy has when it is executed so."""
    names, bends = sorted(SCORES), policy.head.bends and execution.mode != "rtc_exact"
    names = [name for name in names if bends or "path" not in SCORES[name].needs]
    return [name for name in names if _draws(policy) or "samples" not in SCORES[name].needs]


def _draws(policy: Policy) -> bool:
    """Whether the policy's chunks depend on the noise."""
    noise = torch.randn((2, *policy.noise_shape), generator=torch.Generator().manual_seed(0))
    weight = policy.action_normalizer.shift
    cond = split(torch.zeros((2, policy.encoder.flat_size), device=weight.device), policy.encoder.tokens)
    with torch.no_grad():
        a, b = policy.head.sample(policy.net, noise.to(weight.device), cond)
    return not torch.equal(a, b)


class WatchedPolicy:
    """A policy as the planner of one robot that also scores every decision; its actions are the policy's own.

    Chunks beside the executed one are sampled with noise that follows from the decision's own, so scores are a
    function of the observation and the seeds alone. They are sampled without prefix, whatever the mode.

    Args:
        policy: decides.
        scores: names from `SCORES`.
        execution: how its chunks are executed.
        samples: chunks sampled per decision where a score needs them.
        density: of the embeddings, where a score needs it.

    Attributes:
        interval: control steps from one decision to the next, where no delay makes them more.
        scores_ND: of the decisions since `begin`.

    Raises:
        ValueError: a score that this policy does not have, or a density that is missing.
    """

    def __init__(
        self,
        policy: Policy,
        scores: Sequence[str],
        execution: ExecutionConfig | None = None,
        samples: int = 8,
        density: Density | None = None,
    ):
        execution = execution or ExecutionConfig()
        self.names = list(scores)
        able = possible(policy, execution)
        for name in self.names:
            if name not in able:
                raise ValueError(
                    f"score {name!r} is not to be had of head={policy.config.head.kind} in mode={execution.mode!r}, "
                    f"only {', '.join(able)}: acceleration takes a flow head of two or more steps and not "
                    "mode=rtc_exact, entropy and stac take a head that samples"
                )
        self.policy, self.density = policy, density
        self.spec, self.chunk, self.noise_shape = policy.spec, policy.chunk, policy.noise_shape
        self.continues = {**policy.continues, SEEN: policy.chunk.prediction_horizon}
        self.interval = execution.interval(policy.chunk.execution_horizon, policy.chunk.prediction_horizon, 0)
        self._scores: list[Score] = [SCORES[name]() for name in self.names]
        needs = frozenset().union(*(score.needs for score in self._scores))
        if "density" in needs and density is None:
            raise ValueError(f"scores {', '.join(self.names)} need the density of the demonstrations' embeddings")
        self._samples = samples if "samples" in needs else 0
        self.begin()

    def begin(self) -> None:
        """Starts an episode. A decision that is still being made is scored for the old one."""
        self.scores_ND: list[list[float]] = []
        self._memory: dict[str, Tensor] = {}

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """The policy's chunk (1, T, A) for one robot, which is also scored.

        The prefix tells how many control steps this chunk shares with the one before. A delay or a busy machine makes
        them fewer than a decision every `interval` steps does, which without a prefix is taken for granted.

        Raises:
            ValueError: more than one row.
        """
        if len(noise) != 1:
            raise ValueError(f"a watched policy decides for one robot at a time, got {len(noise)} rows")
        scores_ND, memory = self.scores_ND, self._memory
        overlap = self.chunk.prediction_horizon - self.interval if prefix is None else int(prefix.overlap_B[0])
        with Probe(self.policy) as probe:
            chunk = self.policy.plan(observation, noise, prefix if prefix is None or prefix.form != SEEN else None)
        assert probe.cond is not None
        with torch.no_grad():
            chunks_STA = self._sample(probe.cond, noise, observation)
            needs_path = any("path" in score.needs for score in self._scores)
            velocity_KTA = probe.velocity() if needs_path else torch.zeros(0, *self.policy.chunk_shape)
            embedding_E = embedding(probe.cond)[0].float().cpu()
            decision = Decision(embedding_E, velocity_KTA, chunks_STA, memory.get("chunks"), overlap)
            values = [score(decision, self.density) for score in self._scores]
        memory["chunks"] = chunks_STA
        scores_ND.append(values)
        return chunk

    def _sample(self, cond: Conditioning, noise: np.ndarray, observation: Mapping[str, np.ndarray]) -> Tensor:
        """Chunks (S, T, A) from the same conditioning, in one batch, as they can be compared with other decisions'."""
        if not self._samples:
            return torch.zeros(0, *self.policy.chunk_shape)
        key = np.frombuffer(hashlib.sha256(np.ascontiguousarray(noise).tobytes()).digest()[:16], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        draws = torch.from_numpy(random.standard_normal((self._samples, *self.noise_shape), np.float32))
        rows = cond.map(lambda part: part.expand(self._samples, *part.shape[1:]))
        device = cond.vector_BE.device
        chunks = self.policy.head.sample(self.policy.net, draws.to(device), rows)
        seen = {name: torch.from_numpy(value).to(device) for name, value in observation.items()}
        return self._comparable(chunks, seen).float().cpu()

    def _comparable(self, x_STA: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """What the head sees, in numbers whose distances mean the same at every decision.

        Differences depend on where the robot is: in place of them come absolute actions, as shares of their spread.
        """
        policy = self.policy
        if not policy.representation.anchored:
            return x_STA
        rows = {name: value.expand(len(x_STA), *value.shape[1:]) for name, value in observation.items()}
        absolute = Representation(ActionConfig(), policy.spec).to(x_STA.device)
        columns = absolute.encode(policy.decode(x_STA, rows), {})
        discrete = torch.from_numpy(policy.spec.action.discrete).to(x_STA.device)
        spread = absolute.columns_of(policy.action_spread.masked_fill(discrete, 1))
        return ActionCodec(absolute.choices).encode(columns / spread)
