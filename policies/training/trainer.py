"""A policy in training: batches, the optimizer, the averaged weights, and what must survive a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from flowhand.contracts.features import Spec

from ..batch import Batch
from ..compile import require_compiler
from ..device import has_bf16_units, usable_threads
from ..encoders.vision.pretrained import take_pretrained
from ..policy import Policy, PolicyConfig
from .config import TrainingConfig
from .distributed import LostProcessError, OneProcess
from .ema import EMA
from .stream import WindowSource
from .threads import ThreadChooser, ladder
from .train_state import require_state


class Trainer:
    """A policy in training. What must survive a stop is in `state`; `restore` takes it back.

    Args:
        config: the optimization.
        policy: what is trained.
        spec: what the policy sees and commands.
        windows: the demonstrations.
        device: where all is computed.
        seed: of the weights, the batches and the training noise.
        fitted: the statistics come with `restore`: those that the run began with.
        processes: those that share the training; None: this one alone.
    """

    def __init__(
        self,
        config: TrainingConfig,
        policy: PolicyConfig,
        spec: Spec,
        windows: WindowSource,
        device: torch.device,
        seed: int = 0,
        fitted: bool = False,
        processes: OneProcess | None = None,
    ):
        torch.manual_seed(seed)  # of the initial weights; all later randomness comes from the generator
        self.config = config
        self.windows = windows
        self.processes = processes or OneProcess()
        self.policy = Policy(policy, spec).to(device)
        if not fitted:
            take_pretrained(self.policy.encoder, policy.vision)
            self.windows.fit_normalizers(self.policy)
        self.ema = EMA(self.policy, self.config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        self.generator = torch.Generator(device).manual_seed(seed)
        self.order = windows.order(self.generator, seed)  # of the batches
        self.spare = torch.Generator(device).manual_seed(seed)  # of trials, on which nothing depends
        if self.config.compile and device.type == "cpu":
            require_compiler()
        loss = torch.compile(self.policy.loss) if self.config.compile else self.policy.loss
        self.loss: Callable[[Batch, torch.Generator, int], torch.Tensor] = loss
        bf16 = has_bf16_units(device) if self.config.precision == "auto" else self.config.precision == "bf16"
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self.step = 0  # optimizer steps done
        self.seconds = 0.0  # spent training, evaluations not counted
        self.history: list[dict[str, Any]] = []  # log entries
        self.threads = [[0, torch.get_num_threads()]]  # from which step on how many of the CPU computed
        self.waited_s = 0.0  # for batches, in all steps of this process
        self.batch: Batch | None = None  # the last one
        self.gradient_s = 0.0  # of the last step, from its batch to its gradient; on a GPU, until all is launched
        self.bad_step = torch.full((), math.inf, device=device)  # the first step whose loss or gradient was not finite

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero at the last step."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps))

    def advance(self) -> torch.Tensor:
        """One optimizer step; returns the loss without waiting for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = self._gradient() if self.processes.count == 1 else self._shared_gradient()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm)
        self._guard(loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.step += 1
        return loss.detach()

    def _gradient(self) -> torch.Tensor:
        """The loss of the next batch, or of this process's part of it, whose gradient is then with the parameters."""
        started, size = time.perf_counter(), self.config.batch_size
        self.batch = self.windows.draw(size, self.order, self.processes.part(size))
        drawn = time.perf_counter()
        loss = self._differentiate(self.batch, self.processes.share(self.generator, size))
        self.gradient_s = time.perf_counter() - drawn
        self.waited_s += drawn - started
        return loss

    def _shared_gradient(self) -> torch.Tensor:
        """`_gradient` of the whole batch; where a process is lost, all is as it was before the step."""
        before = self.order.get_state(), self.generator.get_state()
        try:
            return self.processes.combine(list(self.policy.parameters()), self._gradient())
        except LostProcessError:
            self.order.set_state(before[0])
            self.generator.set_state(before[1])
            self.optimizer.zero_grad()
            raise

    def _differentiate(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The loss of a batch, whose gradient is then with the parameters."""
        with self.autocast:
            loss = self.loss(batch, generator, self.config.draws)
        self.processes.require_shared(generator)
        loss.backward()
        return loss

    def trial(self) -> None:
        """The work of a step up to its gradient, for whoever times it: changes neither weights nor random numbers."""
        batch = self.windows.draw(self.config.batch_size, self.spare) if self.batch is None else self.batch
        self._differentiate(batch, self.spare)
        self.optimizer.zero_grad()

    def use_threads(self, count: int) -> None:
        """So many CPU threads from here on. Another number sums in another order, so it is noted with the step."""
        torch.set_num_threads(count)
        if count != self.threads[-1][1]:
            self.threads.append([self.step, count])

    @property
    def fixed_threads(self) -> int:
        """The number of CPU threads that stays as it is; 0: it may be chosen anew.

        Processes that wait for each other cannot each choose, and are themselves what uses more cores: one for each.
        """
        return self.config.threads or (1 if self.processes.count > 1 else 0)

    def thread_chooser(self) -> ThreadChooser:
        """What chooses the number of CPU threads, unless the configuration does or a GPU computes."""
        count, free = self.threads[-1][1], self.fixed_threads == 0 and self.bad_step.device.type == "cpu"
        return ThreadChooser(count, ladder(usable_threads()) if free else [count], self.trial)

    def _guard(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """From the first non-finite loss or gradient on, the optimizer's step does nothing.

        The flag stays on the device (the fused optimizer reads `found_inf`), so that no step waits for an answer;
        `require_finite` asks at every log entry and before every save.
        """
        bad = torch.where(torch.isfinite(loss + norm), math.inf, float(self.step))
        self.bad_step = torch.minimum(self.bad_step, bad.detach())
        self.optimizer.found_inf = torch.isfinite(self.bad_step).float()  # pyright: ignore[reportAttributeAccessIssue]

    def require_finite(self) -> None:
        """Raises `ValueError` naming the first step whose loss or gradient was not finite."""
        bad = self.bad_step.item()
        if math.isfinite(bad):
            raise ValueError(
                f"the loss or its gradient was not finite at step {int(bad)}; nothing was learned from it. "
                "Lower train.learning_rate, or look at the demonstrations"
            )

    def require_together(self) -> None:
        """Raises `ValueError` unless all processes have the same weights, demonstrations and step."""
        if self.processes.count > 1 and not self.processes.lost:
            weights = [p.detach().view(torch.int32).sum(dtype=torch.int64) for p in self.policy.parameters()]
            digest = int(torch.stack(weights).sum()) % 2**52
            self.processes.require_same(steps=self.step, windows=len(self.windows), weights=digest)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors, numbers, strings, lists and dicts."""
        order = {} if self.order is self.generator else {"order": self.order.get_state()}
        return {
            **order,
            "policy": self.policy.state_dict(),
            "ema": self.ema.module.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "threads": self.threads,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; nothing, if any of it is wrong."""
        if ("order" in state) != (self.order is not self.generator):
            was = "read from the disk" if "order" in state else "all in memory"
            raise ValueError(f"the run that is resumed had its demonstrations {was}; set data.memory_gb as it was then")
        require_state(state, self.state(), list(self.policy.parameters()), self.config.steps)
        self.policy.load_state_dict(state["policy"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        if self.order is not self.generator:
            self.order.set_state(state["order"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.threads = state.get("threads", self.threads)  # an earlier version did not note them
        self.use_threads(self.fixed_threads or self.threads[-1][1])
