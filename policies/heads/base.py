"""What every action head shares."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowhand.contracts.strict import build

from ..conditioning import Conditioning
from ..draws import over_all
from ..fields import Fields
from ..generation.paths import Coefficients
from ..generation.prefix import Prefix
from ..nets.base import Net

CHOICE_ERRORS = ("auto", "squared", "cross_entropy")

# Bounds of the fields of heads that are preconditioned and draw their training noise by the ratio of noise to signal.
RATIO_LIMITS = {
    "sigma_data": (1e-3, 1e3),
    "log_mean": (-10.0, 10.0),
    "log_std": (1e-3, 5.0),
    "uniform_share": (0.0, 1.0),
}


@dataclass
class HeadConfig:
    """Base of every head's configuration."""

    kind: str = "???"

    def require_choice_error(self, error: str, prediction: str = "data") -> None:
        """Raises `ValueError` unless it is known, and possible with what the net predicts."""
        if error not in CHOICE_ERRORS:
            raise ValueError(f"head.choices={error!r} is unknown; choices: {', '.join(CHOICE_ERRORS)}")
        if error == "cross_entropy" and prediction != "data":
            raise ValueError(f"head.choices={error!r} needs head.prediction='data', got {prediction!r}")

    # Fields that only `sample` and `continue_chunk` read: neither the loss nor any tensor of a checkpoint depends on
    # them, so that they may be changed after the training (`Policy.with_head`). A head that has any names them.
    sampling: ClassVar[tuple[str, ...]] = ()

    def resampled(self, changes: Mapping[str, Any]) -> HeadConfig:
        """The configuration with other values of sampling fields.

        Raises:
            ValueError: a field that the head lacks or that its training depends on, or a value that it cannot have.
        """
        for name in changes:
            if name in self.sampling:
                continue
            choices = f"what can be changed: {', '.join(self.sampling) or 'nothing'}"
            if name in asdict(self):
                problem = f"head.{name} belongs to the training of head={self.kind} and cannot be changed after it"
                raise ValueError(f"{problem}; {choices}")
            near = difflib.get_close_matches(name, self.sampling, n=1)
            hint = f"did you mean {near[0]!r}?" if near else choices
            raise ValueError(f"head={self.kind} has no field {name!r}; {hint}")
        config = build(type(self), {**asdict(self), **changes}, "head")
        if changes:
            config.require_reference()
        return config

    def require_separable(self) -> None:
        """Raises `ValueError` where the loss of a row depends on other rows in a way that processes cannot share."""

    def require_reference(self) -> None:
        """Raises `ValueError` for a setting that leaves the reference; a stored policy may have it, no new one."""

    def changed_from(self, other: HeadConfig) -> dict[str, Any]:
        """The fields, with their values, in which it differs from another configuration of the same head."""
        before = asdict(other)
        return {name: value for name, value in asdict(self).items() if value != before[name]}


class Head(nn.Module):
    """Decides what the net is asked in training and how its answers become a chunk.

    Works on normalized actions. Heads share identical nets, so that comparing heads compares nothing else. A head is
    built from its configuration, the size of the conditioning vector and the shape (N, W) of the tokens; one that needs
    a second time (the end of an interval, the length of a step) embeds it itself and adds it to the conditioning.
    """

    continues: tuple[str, ...] = ()  # the forms of a prefix that `continue_chunk` knows

    def __init__(self):
        super().__init__()
        self.fields: Fields | None = None

    @property
    def choice_error(self) -> str:
        """What a wrong choice costs, squared or cross_entropy; by cross-entropy the net gives probabilities."""
        config = getattr(self, "config", None)
        error = getattr(config, "choices", "squared")
        if error != "auto":
            return error
        points = self.fields is not None and bool(self.fields.pointing)
        return "cross_entropy" if points and getattr(config, "prediction", "data") == "data" else "squared"

    def arrange(self, fields: Fields) -> None:
        """Is told which numbers of a chunk are the code of one choice.

        Raises:
            ValueError: cross-entropy was asked for, and there is no choice.
        """
        self.fields = fields
        if self.choice_error == "cross_entropy" and not fields.chooses:
            raise ValueError("head.choices=cross_entropy, and the action has no choice; use head.choices=squared")

    def expected(self, data: Tensor) -> Tensor:
        """Predicted chunks (..., T, A) without what the loss never saw, for the next evaluation: see `Fields`."""
        return data if self.fields is None else self.fields.expected(data)

    def error(self, output: Tensor, target: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """How far off predicted chunks (..., B, T, A) are where the mask counts, as `choice_error` says."""
        if self.fields is None or self.choice_error == "squared":
            return masked_mean((output - target).square(), mask, generator)
        return self.fields.loss(output, target, mask, generator=generator)

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        raise NotImplementedError

    @property
    def bends(self) -> bool:
        """Whether `velocities` tells how the way from noise to the chunk bends."""
        return False

    @property
    def preconditioned(self) -> bool:
        """Whether the net sees scaled actions and answers a preconditioned target (Karras 2022, Table 1)."""
        return False

    def coefficients(self, net_time: Tensor) -> Coefficients:
        """The Gaussian path of the head at what the net is given as the time; for a head that has one path."""
        raise NotImplementedError(f"{type(self).__name__} follows no single path")

    def noise_shape(self, chunk_shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the noise that a row of `sample` needs; larger than the chunk if a sampler draws again on the way.

        All of it is given beforehand, so that an action stays a function of the weights, the observation and the noise.
        """
        return chunk_shape

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Training loss, a scalar, of demonstrated chunks (B, T, A) where the mask is True.

        The mask is one of steps (B, T), or, where the numbers of an action count by turns, of numbers (B, T, A).
        """
        raise NotImplementedError

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """A chunk (B, T, A) for each row, a function of the weights, the conditioning and the noise alone.

        The noise is (B, *noise_shape), which is (B, T, A) unless the head says otherwise.
        """
        raise NotImplementedError

    def delays(self, horizon: int) -> dict[str, int]:
        """The forms of a prefix that the head, as it is configured, can continue.

        Each with the longest delay that it takes of a chunk of so many control steps.
        """
        return {}

    def velocities(self, asked: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The velocities (K, B, T, A) at the beginning of each of K steps from the noise, where the head `bends`.

        Args:
            asked: all that the net was asked in one `sample`, in turn, and what it answered.
        """
        raise NotImplementedError

    def continue_chunk(self, net: Net, noise_BTA: Tensor, cond: Conditioning, prefix: Prefix) -> Tensor:
        """`sample`, but the chunk continues a prefix of normalized actions, in one of the forms of `continues`."""
        raise NotImplementedError


def masked_mean(error: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mean of an error (..., B, T, A) over the steps where the mask (B, T) is True, or the numbers (B, T, A).

    Where several processes share the batch, it is this one's part of the mean: all parts together are the mean.
    """
    weight = per_number(mask, error).to(error.dtype)
    return (error * weight).sum() / over_all(weight.sum(), generator).clamp(min=1)


def per_number(mask: Tensor, like: Tensor) -> Tensor:
    """A mask (B, T) of steps, or one of numbers (B, T, A), as one of the numbers of `like` (..., B, T, A)."""
    return (mask.unsqueeze(-1) if mask.ndim == 2 else mask).expand_as(like)


def action_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean over the numbers of each action that count, (..., B, T, 1)."""
    if mask.ndim == 2:
        return error.mean(dim=-1, keepdim=True)
    weight = per_number(mask, error).to(error.dtype)
    return (error * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
