"""Flow matching head: the generative head of choice for demonstrations with more than one way to do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowhand.contracts.strict import require_within

from ..conditioning import Conditioning
from ..draws import drawn
from ..generation.coupling import COUPLINGS, couple, require_separable
from ..generation.grids import GRIDS, tabulated, times_on
from ..generation.guidance import combined, predictor
from ..generation.paths import (
    PATHS,
    TIMES,
    Coefficients,
    preconditioned_target,
    read,
    readings,
    sample_log_ratio,
    sample_time,
    scale,
    time_at,
    to_data,
    to_velocity,
)
from ..generation.prefix import Prefix, first, hold_first, pull_strength, soft_mask
from ..generation.solvers import SOLVERS, integrate, multistep, stage_times, walk
from ..nets.base import Net
from .base import RATIO_LIMITS, Head, HeadConfig

PREDICTIONS = ("velocity", "data", "preconditioned")
MULTISTEP = "multistep"  # beside the methods of SOLVERS, which follow the velocity

Answer = tuple[Tensor, Tensor, Tensor | None]  # the chunk that was asked about, the answer, a push on the velocity


@dataclass
class FlowConfig(HeadConfig):
    """Conditional flow matching (Lipman 2023, Liu 2023), any number of steps."""

    sampling: ClassVar[tuple[str, ...]] = ("steps", "solver", "grid", "guidance", "max_guidance")

    kind: str = "flow"
    prediction: str = "data"  # what the net predicts: velocity | data | preconditioned (unit variance in and out)
    # training times: uniform | beta (more near the noise) | logit_normal (more in the middle) | log_normal (by the
    # ratio of noise to signal)
    time: str = "beta"
    draws: int = 1  # (time, noise) pairs per encoded observation in training
    steps: int = 4  # solver steps K per decision
    solver: str = "euler"  # euler | midpoint | heun | rk4 | multistep (DPM-Solver++ 2M, one evaluation a step)
    # where the steps are: uniform | power (shorter towards the data) | tabulated (made for multistep; see grids.py)
    grid: str = field(default="uniform", metadata={"before": "uniform"})
    # linear | cosine (keeps the variance of normalized data; it is curved, which euler needs many steps to follow)
    path: str = field(default="linear", metadata={"before": "linear"})
    # which noise meets which chunk in training: independent | optimal_transport (within a batch; see coupling.py)
    coupling: str = field(default="independent", metadata={"before": "independent"})
    # what optimal transport pays for noise from a row with another condition; 0 is right only without a condition
    coupling_condition: float = field(default=100.0, metadata={"before": 100.0})
    # share of the rows that are trained without their condition, in [0, 1); 0 trains none
    condition_dropout: float = field(default=0.0, metadata={"before": 0.0})
    # classifier-free guidance: 0 ignores the condition, 1 is the plain sampler, more exaggerates what it says
    guidance: float = field(default=1.0, metadata={"before": 1.0})
    # the largest weight of the pull towards a prefix (forms exact and identity), in 1 / unit of generation time
    max_guidance: float = field(default=5.0, metadata={"before": 5.0})
    # control steps of a chunk that may be given beforehand (form trained); less than the chunk has; 0 trains none
    prefix_max: int = field(default=0, metadata={"before": 0})
    # spread of the data, normalized units, where the prediction is preconditioned: 1 for mean_std, 0.5 for min_max
    sigma_data: float = field(default=1.0, metadata={"before": 1.0})
    log_mean: float = field(default=-1.2, metadata={"before": -1.2})  # mean of ln(sigma / alpha), time=log_normal
    log_std: float = field(default=1.2, metadata={"before": 1.2})  # its standard deviation
    # share of the rows, with time=log_normal, whose noise is that of uniform times on the linear path
    uniform_share: float = field(default=0.1, metadata={"before": 0.1})
    # what a wrong choice costs: squared (of its code) | cross_entropy (the net gives probabilities) | auto
    # (cross_entropy where the action points at rows of the observation and the net predicts data, else squared)
    choices: str = field(default="auto", metadata={"before": "auto"})

    def __post_init__(self) -> None:
        self.require_choice_error(self.choices, self.prediction)
        choices = {"prediction": PREDICTIONS, "time": (*TIMES, "log_normal"), "solver": (*SOLVERS, MULTISTEP)}
        choices |= {"grid": GRIDS, "path": PATHS, "coupling": COUPLINGS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"head.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(known)}")
        for name in ("draws", "steps"):
            if not 1 <= getattr(self, name) <= 1000:
                raise ValueError(f"head.{name}={getattr(self, name)} must lie in 1..1000")
        if self.grid == "tabulated":
            tabulated(self.steps)
        require_within(self, "head", RATIO_LIMITS)
        if self.prediction == "data" and self.solver in SOLVERS and 1.0 in SOLVERS[self.solver].c:
            raise ValueError(
                f"head.solver={self.solver!r} evaluates at t=1, where the velocity of head.prediction='data' is "
                "singular; use euler, midpoint or multistep"
            )
        most = {"coupling_condition": 1e9, "guidance": 100, "max_guidance": 1000, "prefix_max": 1000}
        for name, largest in most.items():
            if not 0 <= getattr(self, name) <= largest:
                raise ValueError(f"head.{name}={getattr(self, name)} must lie in 0..{largest:g}")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"head.condition_dropout={self.condition_dropout} must lie in [0, 1)")
        if self.guidance != 1 and not self.condition_dropout:
            raise ValueError(
                f"head.guidance={self.guidance} needs a policy that was also trained without conditions: "
                "head.condition_dropout above 0, for example 0.1"
            )

    def require_separable(self) -> None:
        """Raises `ValueError` for a coupling of the whole batch."""
        require_separable(self.coupling)


class FlowHead(Head):
    """Learns the velocity of the path and integrates it from noise to data."""

    continues = ("exact", "identity", "trained")
    times: Tensor
    null: Tensor | None

    def __init__(self, config: FlowConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config
        self.tableau = SOLVERS.get(config.solver)
        self.stages = self.tableau.stages if self.tableau else 1
        self.path = PATHS[config.path]
        self.grid = times_on(config.path, config.grid, config.steps)
        times = stage_times(self.tableau, self.grid) if self.tableau else self.grid[:-1]
        # (K,), when the net is asked
        self.register_buffer("times", torch.tensor(times, dtype=torch.float32), persistent=False)
        # The device is named because a checkpoint's shapes are found out on the meta device, which computes nothing.
        points = self.path(torch.tensor(times, dtype=torch.float64, device="cpu"))
        self.readings = readings(config.prediction, points, config.sigma_data)
        # Reading by numbers is quicker, but what is older keeps the order of its sums, to the last bit of an action.
        self._quick = self.tableau is None or config.prediction == "preconditioned"
        levels = [*zip(points.alpha.tolist(), points.sigma.tolist(), strict=True), (1.0, 0.0)]
        self.updates = [] if self.tableau else [multistep(levels, i) for i in range(config.steps)]
        # Learned, for zero is what the encoder may well make of some observation; here the net can tell them apart.
        null = nn.Parameter(torch.zeros(cond_size + math.prod(tokens)))
        self.register_parameter("null", null if config.condition_dropout else None)

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision; guidance doubles them, in batches of twice the rows."""
        return self.config.steps * self.stages * (1 if self.config.guidance == 1 else 2)

    @property
    def preconditioned(self) -> bool:
        """Whether it is asked for."""
        return self.config.prediction == "preconditioned"

    def coefficients(self, net_time: Tensor) -> Coefficients:
        """Of the configured path."""
        return self.path(net_time)

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the prediction at random times (Lipman 2023, Eq. 9).

        With prediction=data the target is the chunk itself (on the linear path weight (1-t)^2 relative to the velocity
        loss), which learns the conditional mean as fast as regression does. With prediction=preconditioned it is what a
        net must add to the share of x_t that the data have in it, at unit variance (Karras 2022).
        """
        config, (B, T, A) = self.config, x1_BTA.shape
        t = self._times((config.draws, B), x1_BTA, generator)
        x0 = drawn(torch.randn, (config.draws, B, T, A), generator, 1, device=x1_BTA.device, dtype=x1_BTA.dtype)
        if config.coupling == "optimal_transport":
            x0 = couple(x0, x1_BTA, cond.flat_BF, mask_BT, config.coupling_condition)
        if config.condition_dropout:
            # Some rows are told nothing (Ho & Salimans 2022, Algorithm 1).
            draw = drawn(torch.rand, (len(cond), 1), generator, device=x1_BTA.device)
            assert self.null is not None
            cond = cond.without(self.null, draw[:, 0] < config.condition_dropout)
        if config.prefix_max:
            t, mask_BT = hold_first(t, mask_BT, self.config.prefix_max, generator)
        c = self.path(t.reshape(config.draws, B, -1, 1))
        x_t = c.alpha * x1_BTA + c.sigma * x0
        if config.prediction == "preconditioned":
            x_t, target = x_t / scale(c, config.sigma_data), preconditioned_target(x1_BTA, x0, c, config.sigma_data)
        else:
            target = c.d_alpha * x1_BTA + c.d_sigma * x0 if config.prediction == "velocity" else x1_BTA.expand_as(x0)
        modulation = net.prepare(t, cond, per_action=config.prefix_max > 0)
        output = net(x_t.flatten(0, 1), modulation.flatten(0, 1)).unflatten(0, (config.draws, B))
        return self.error(output, target, mask_BT, generator)

    def _times(self, shape: tuple[int, ...], x1_BTA: Tensor, generator: torch.Generator | None) -> Tensor:
        """Training times of the given shape."""
        config = self.config
        if config.time != "log_normal":
            return sample_time(config.time, shape, x1_BTA, generator)
        noise = (config.log_mean, config.log_std, config.uniform_share)
        return time_at(config.path, sample_log_ratio(shape, *noise, x1_BTA, generator))

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """Integrates from the noise; all time-dependent work is done for the K steps at once, before the loop."""
        predict = self._predictor(net, self.times[:, None].expand(-1, len(noise_BTA)), cond)
        return self._solve(lambda x, i: (x, predict(x, i), None), noise_BTA)

    def continue_chunk(self, net: Net, noise_BTA: Tensor, cond: Conditioning, prefix: Prefix) -> Tensor:
        """`sample`, but the chunk continues a prefix of normalized actions.

        Raises:
            ValueError: form trained, and a delay that the head was not trained for; another form, and a single step.
        """
        if prefix.form != "trained":
            if self.config.steps < 2:
                raise ValueError(
                    f"prefix.form={prefix.form!r} needs head.steps of at least 2, got 1: in the first step the net "
                    "sees nothing but noise, which does not tell where a pull would lead"
                )
            return self._pulled(net, noise_BTA, cond, prefix)
        if not self.config.prefix_max:
            raise ValueError(
                "prefix.form='trained' needs a policy trained with head.prefix_max above 0; "
                "this one continues a chunk with form: exact, identity"
            )
        if prefix.longest > self.config.prefix_max:
            raise ValueError(
                f"prefix.form='trained' with a delay of {prefix.longest} steps, but the policy was trained for at most "
                f"head.prefix_max={self.config.prefix_max}; forms exact and identity take any delay"
            )
        return self._held(net, noise_BTA, cond, prefix)

    def delays(self, horizon: int) -> dict[str, int]:
        """Any delay where the chunk is pulled, which one step cannot be; else those of the training."""
        pulled = horizon if self.config.steps > 1 else 0
        longest = {"exact": pulled, "identity": pulled, "trained": self.config.prefix_max}
        return {form: delay for form, delay in longest.items() if delay}

    @property
    def bends(self) -> bool:
        """Whether there are two velocities to compare."""
        return self.config.steps > 1

    def velocities(self, asked: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Guided, the net is asked for twice the rows: first with their condition, then without."""
        found = []
        for i in range(0, len(self.times), self.stages):
            x, output = asked[i]
            output = combined(output, self.config.guidance)
            found.append(self.velocity(x[: len(output)] * self.readings[i].scale, output, i))
        return torch.stack(found)

    def _solve(self, answer: Callable[[Tensor, int], Answer], noise_BTA: Tensor) -> Tensor:
        """Carries the noise to the data by the answers at each evaluation."""
        if self.tableau is None:

            def denoise(x: Tensor, i: int) -> tuple[Tensor, None]:
                x, output, push = answer(x, i)
                data = self._data(x, output, i)
                if push is None:
                    return data, None
                c = self.path(self.times[i])  # where a velocity of 1 more means so much more in the data
                return data + c.sigma / (c.sigma * c.d_alpha - c.alpha * c.d_sigma) * push, None

            return walk(denoise, noise_BTA, self.updates)

        def velocity(x: Tensor, i: int) -> Tensor:
            x, output, push = answer(x, i)
            velocity = self.velocity(x, output, i)
            return velocity if push is None else velocity + push

        return integrate(velocity, noise_BTA, self.tableau, self.grid)

    def velocity(self, x_BTA: Tensor, output: Tensor, i: int) -> Tensor:
        """The velocity at the i-th evaluation, from the chunk and what the net predicted for it."""
        if self._quick:
            return read(self.readings[i].velocity, x_BTA, output)
        return to_velocity(self.config.prediction, output, x_BTA, self.path(self.times[i]))

    def _data(self, x_BTA: Tensor, output: Tensor, i: int) -> Tensor:
        """The data at the i-th evaluation."""
        if self._quick:
            return read(self.readings[i].data, x_BTA, output)
        return to_data(self.config.prediction, output, x_BTA, self.path(self.times[i]))

    def _seen(self, x_BTA: Tensor, i: int, held_BT1: Tensor | None = None) -> Tensor:
        """What the net sees of a chunk at the i-th evaluation; a held action stands at the data, of their spread."""
        if self.config.prediction != "preconditioned":
            return x_BTA
        size = self.readings[i].scale
        return x_BTA / (size if held_BT1 is None else torch.where(held_BT1, self.config.sigma_data, size))

    def _predictor(
        self, net: Net, t: Tensor, cond: Conditioning, held_BT: Tensor | None = None
    ) -> Callable[[Tensor, int], Tensor]:
        """What the net predicts for chunks at the i-th of the times (K, B), or (K, B, T) where actions are held."""
        held, null = None if held_BT is None else held_BT.unsqueeze(-1), self.null
        predict = predictor(net, t, cond, held is not None, self.config.guidance, null)
        if self.config.prediction == "data":
            return lambda x, i: self.expected(predict(x, i))
        return lambda x, i: predict(self._seen(x, i, held), i)

    def _pulled(self, net: Net, noise_BTA: Tensor, cond: Conditioning, prefix: Prefix) -> Tensor:
        """Real-time chunking (Black 2025, arXiv 2506.07339, Eq. 2): the velocity leads towards the prefix as well.

        v + min(beta, strength) * J^T W (prefix - x1), x1 the data that the net expects and J its derivative in x,
        through the net (exact) or replaced by the identity.
        """
        predict = self._predictor(net, self.times[:, None].expand(-1, len(noise_BTA)), cond)
        weight = soft_mask(prefix.delay_B, prefix.overlap_B, noise_BTA.shape[1]).unsqueeze(-1)
        known = torch.where(weight > 0, prefix.actions_BTA, 0)

        def answer(x: Tensor, i: int) -> Answer:
            def expected(x: Tensor) -> tuple[Tensor, Tensor]:
                output = predict(x, i)
                return self._data(x, output, i), output

            if prefix.form == "exact":  # vjp differentiates under no_grad too, and in x alone
                x1, transposed, output = torch.func.vjp(expected, x, has_aux=True)  # pyright: ignore[reportAssignmentType]
                pull = transposed(weight * (known - x1))[0]
            else:
                x1, output = expected(x)
                pull = weight * (known - x1)
            return x, output, pull_strength(self.path(self.times[i]), self.config.max_guidance) * pull

        return self._solve(answer, noise_BTA)

    def _held(self, net: Net, noise_BTA: Tensor, cond: Conditioning, prefix: Prefix) -> Tensor:
        """Training-time real-time chunking (Black 2025, arXiv 2512.05964): the prefix stands at t=1 from the start."""
        held = first(prefix.delay_B, noise_BTA.shape[1])
        predict = self._predictor(net, torch.where(held, 1, self.times[:, None, None]), cond, held)

        def hold(x: Tensor) -> Tensor:
            return torch.where(held.unsqueeze(-1), prefix.actions_BTA, x)

        def answer(x: Tensor, i: int) -> Answer:
            x = hold(x)
            return x, predict(x, i), None

        return hold(self._solve(answer, noise_BTA))
