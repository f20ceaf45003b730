"""LeRobot's DiffusionPolicy behind a pipe. Runs in LeRobot's own environment (see peers_process.py), not in ours.

Each line of the standard input is a question in JSON, {"do": name of a method of `Session`, ...its arguments}; each is
answered by one line. Everything else that is printed goes to the standard error.

What LeRobot decides is left to it: net, loss, noise schedule, normalization (its processors), optimizer and schedule
classes, gradient clipping. Four things are set in its favour: batches are gathered from memory instead of read from a
dataset on the disk; the environment's state is normalized as the robot's is, which its defaults leave out; the learning
rate is the caller's, as its own 1e-4 is made for much longer runs; and the warm-up takes a tenth of the run if that is
less than its own 500 steps.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from typing import Any

import numpy as np
import torch
from torch import Tensor

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
REHEARSED = 3  # steps or decisions that are not timed


def declare_vision_operators() -> None:
    """Lets torchvision be imported where its compiled half does not load: a CUDA build beside a torch for CPUs.

    Its import describes two operators that only the compiled half declares; nothing here calls them.
    """
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def split(observation: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    """The vectors of these names as LeRobot's two: the first is the robot's state, the rest the environment's.

    Without images the policy asks for both; a single vector stands for both.
    """
    first, *rest = (torch.as_tensor(np.asarray(observation[name], np.float32)) for name in names)
    return {STATE: first, ENVIRONMENT: torch.cat(rest, -1) if rest else first}


def windows(lengths: Tensor, history: int, horizon: int, dropped: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of what LeRobot's dataset and sampler give: observations (N, O), actions (N, T), padding (N, T).

    A window at step i has observations i-O+1 .. i and actions from i-O+1 on; indices stop at the ends of the episode,
    and no window starts in its last `dropped` steps.
    """
    ends = lengths.cumsum(0)
    first, last = (torch.repeat_interleave(x, lengths) for x in (ends - lengths, ends - 1))
    step = torch.arange(len(last))
    kept = step <= last - dropped
    step, first, last = step[kept, None], first[kept, None], last[kept, None]
    seen = (step + torch.arange(1 - history, 1)).maximum(first)
    done = step + torch.arange(1 - history, 1 - history + horizon)
    return seen, done.maximum(first).minimum(last), (done < first) | (done > last)


class Session:
    """What can be asked for. `load` comes first; `decide` and `time` use the policy of the last `train`."""

    def versions(self) -> dict[str, str]:
        """Of what the numbers depend on."""
        import diffusers  # pyright: ignore[reportMissingImports]
        import lerobot  # pyright: ignore[reportMissingImports]

        named = {"lerobot": lerobot.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        return {"python": platform.python_version(), **named}

    def load(
        self,
        data: str,
        down_dims: list[int],
        history: int,
        horizon: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        threads: int,
        device: str,
    ) -> dict[str, Any]:
        """Takes the demonstrations, an npz file with `observation/<name>`, `action` and `lengths`, and the settings."""
        from lerobot.configs.types import (  # pyright: ignore[reportMissingImports]
            FeatureType,
            NormalizationMode,
            PolicyFeature,
        )

        torch.set_num_threads(threads)
        with np.load(data, allow_pickle=False) as arrays:
            prefix = "observation/"
            observation = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
            self.names = list(observation)
            self.data = {**split(observation, self.names), ACTION: torch.from_numpy(arrays["action"])}
            self.lengths = torch.from_numpy(arrays["lengths"])
        kinds = {STATE: FeatureType.STATE, ENVIRONMENT: FeatureType.ENV, ACTION: FeatureType.ACTION}
        features = {name: PolicyFeature(kinds[name], tuple(x.shape[1:])) for name, x in self.data.items()}
        self.fields = {
            "normalization_mapping": dict.fromkeys(("STATE", "ENV", "ACTION"), NormalizationMode.MIN_MAX),
            "output_features": {ACTION: features.pop(ACTION)},
            "input_features": features,
            "n_obs_steps": history,
            "horizon": horizon,
            "n_action_steps": horizon - history + 1,  # all that lie ahead; the caller decides how many it executes
            "down_dims": tuple(down_dims),
            "optimizer_lr": learning_rate,
            "device": device,
        }
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.policy = self._fresh()
        return {"parameters": sum(p.numel() for p in self.policy.parameters())}

    def _fresh(self, sampler: str = "DDIM", steps: int = 10) -> Any:
        """A policy with new weights, and the processors around it."""
        from lerobot.policies.diffusion.configuration_diffusion import (  # pyright: ignore[reportMissingImports]
            DiffusionConfig,
        )
        from lerobot.policies.diffusion.modeling_diffusion import (  # pyright: ignore[reportMissingImports]
            DiffusionPolicy,
        )
        from lerobot.policies.factory import make_pre_post_processors  # pyright: ignore[reportMissingImports]

        torch.manual_seed(self.seed)
        config = DiffusionConfig(noise_scheduler_type=sampler, num_inference_steps=steps, **self.fields)
        stats = {
            name: {"min": x.amin(0), "max": x.amax(0), "mean": x.mean(0), "std": x.std(0)}
            for name, x in self.data.items()
        }
        self.before, self.after = make_pre_post_processors(config, dataset_stats=stats)
        return DiffusionPolicy(config).to(self.device)

    def _fit(self, policy: Any, steps: int, seconds: float, skip: int = 0) -> dict[str, float]:
        """Trains as LeRobot's script does: so many steps, or seconds if those are over first; `skip` are not timed."""
        config = policy.config
        optimizer_preset, schedule_preset = config.get_optimizer_preset(), config.get_scheduler_preset()
        schedule_preset.num_warmup_steps = min(schedule_preset.num_warmup_steps, steps // 10)
        optimizer = optimizer_preset.build(policy.get_optim_params())
        schedule = schedule_preset.build(optimizer, steps)
        seen, done, padded = windows(self.lengths, config.n_obs_steps, config.horizon, config.drop_n_last_frames)
        order = torch.randperm(len(seen))
        policy.train()
        started, loss, step = self._now(), float("nan"), -skip
        while step < steps and (step < 0 or time.perf_counter() - started < seconds):
            if len(order) < self.batch_size:
                order = torch.cat([order, torch.randperm(len(seen))])
            index, order = order[: self.batch_size], order[self.batch_size :]
            batch = {name: self.data[name][seen[index]] for name in (STATE, ENVIRONMENT)}
            batch |= {ACTION: self.data[ACTION][done[index]], "action_is_pad": padded[index]}
            output, _ = policy.forward(self.before(batch))
            output.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), optimizer_preset.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            loss = output.item()  # LeRobot's script reads it at every step
            step += 1
            if step == 0:
                started = self._now()
        policy.eval()
        return {"steps": step, "seconds": self._now() - started, "loss": loss}

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def rehearse(self, seconds: float) -> dict[str, float]:
        """Trains a policy that is thrown away, to see how fast it goes."""
        return self._fit(self._fresh(), 10**9, seconds, skip=REHEARSED)

    def train(self, steps: int, seconds: float) -> dict[str, float]:
        """Trains a new policy, which stays."""
        self.policy = self._fresh()
        return self._fit(self.policy, steps, seconds)

    def decide(self, observation: dict[str, Any], noise: list[Any]) -> dict[str, Any]:
        """Actions ahead (B, T-O+1, A) from histories (B, O, n) and noise (B, T, A)."""
        with torch.no_grad():
            batch = self.before(split(observation, self.names))
            chunk = self.policy.diffusion.generate_actions(batch, noise=torch.tensor(noise, device=self.device))
            return {"actions": self.after(chunk).tolist()}

    def time(self, sampler: str, steps: int, calls: int, part: str) -> dict[str, list[float]]:
        """Milliseconds of single decisions, of the policy alone ("core") or with processors and queues ("whole")."""
        policy = self._fresh(sampler, steps).eval()
        policy.load_state_dict(self.policy.state_dict())
        raw = {name: self.data[name][:1] for name in (STATE, ENVIRONMENT)}
        history = policy.config.n_obs_steps
        ready = {name: x[:, None].expand(-1, history, -1) for name, x in self.before(dict(raw)).items() if name in raw}

        def core() -> None:
            policy.diffusion.generate_actions(ready)

        def whole() -> None:
            policy.reset()  # an empty queue of actions: every call decides
            self.after(policy.select_action(self.before(dict(raw))))

        return {"milliseconds": self._milliseconds({"core": core, "whole": whole}[part], calls)}

    @torch.no_grad()
    def _milliseconds(self, work: Any, calls: int) -> list[float]:
        times = []
        for _ in range(calls + REHEARSED):
            start = self._now()
            work()
            times.append(1e3 * (self._now() - start))
        return times[REHEARSED:]


def main() -> None:
    """Entry point."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    declare_vision_operators()
    session = Session()
    print(json.dumps(session.versions()), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(session, question.pop("do"))(**question)
        except Exception:  # whatever it is, the other side must hear of it
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
