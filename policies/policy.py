"""Policy: normalizer, encoder, net and head as one module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowhand.contracts.data.tasks import SOURCE
from flowhand.contracts.features import GIVEN, ChunkConfig, Spec
from flowhand.contracts.planner import PrefixArrays, check_spec
from flowhand.contracts.provenance import Provenance

from .action_codec import ActionCodec
from .batch import Batch
from .compile import CompiledSampler
from .components import component, encoder_of, head_of
from .conditioning import Conditioning
from .encoders import image_sizes
from .encoders.base import EncoderConfig
from .encoders.state import StateEncoderConfig
from .encoders.vision.config import KINDS, NoVisionConfig, VisionConfig
from .encoders.words.config import NoWordsConfig, WordsConfig
from .encoders.words.task import Given
from .fields import Fields
from .fitting import fit
from .generation.prefix import Prefix
from .heads import HEADS
from .heads.base import HeadConfig
from .heads.flow import FlowConfig
from .nets import NETS
from .nets.base import Net, NetConfig
from .nets.mlp import MLPConfig
from .normalizer import Normalizer, NormalizerConfig
from .representation.config import ActionConfig, declared, earlier
from .representation.represent import Representation

ALIGNMENT = 64  # bytes, at a multiple of which torch allocates on a CPU


@dataclass
class PolicyConfig:
    """Everything that shapes a policy; stored in every checkpoint."""

    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    encoder: EncoderConfig = field(default_factory=StateEncoderConfig)
    net: NetConfig = field(default_factory=MLPConfig)
    head: HeadConfig = field(default_factory=FlowConfig)
    action: ActionConfig = field(default_factory=ActionConfig, metadata={"before": earlier()})
    vision: VisionConfig = field(default_factory=NoVisionConfig)
    words: WordsConfig = field(default_factory=NoWordsConfig)


class Policy(nn.Module):
    """Observation history in, chunk of actions out, both in physical units."""

    def __init__(self, config: PolicyConfig, spec: Spec):
        super().__init__()
        check_spec(spec)
        spec = declared(spec, config.action)
        self.config = config
        self.spec = spec
        self.representation = Representation(config.action, spec)
        self.codec = ActionCodec(self.representation.choices)
        self.fields = Fields(self.codec.choices, spec, self.representation.plain)
        self.chunk_shape = (config.chunk.prediction_horizon, self.codec.size)  # as heads and nets see it
        # Colours and elements need no statistics; those of depth are of all its pixels together.
        measured = {n: f for n, f in spec.recorded.observation.items() if f.kind not in ("image", "elements")}
        sizes = {name: 1 if feature.kind in KINDS else feature.size for name, feature in measured.items()}
        self.sources = spec.observation[SOURCE].size if SOURCE in spec.observation else 0  # with their own statistics
        normalizers = {name: Normalizer(size, 0, self.sources) for name, size in sizes.items()}
        self.observation_normalizers = nn.ModuleDict(normalizers)
        steps = config.chunk.prediction_horizon if config.action.statistics == "step" else 0
        self.action_normalizer = Normalizer(self.representation.size, steps, self.sources)
        self.given = Given(spec)
        self.encoder = encoder_of(config, spec)
        self.net = component(NETS, config.net, "net")(
            config.net, self.chunk_shape, self.encoder.size, self.encoder.tokens
        )
        self.head = head_of(config.head, self.encoder, self.fields)
        self.net.arrange(self.fields, self.encoder.row_tokens, self.head.choice_error == "cross_entropy")
        self._compiled: CompiledSampler | None = None
        self._trained_head = config.head
        self._provenance: Provenance | None = None

    @property
    def provenance(self) -> Provenance:
        """Where the policy comes from.

        Raises:
            ValueError: it was not loaded from a checkpoint.
        """
        if self._provenance is None:
            raise ValueError("the policy was not loaded from a checkpoint, which would say where it comes from")
        return self._provenance

    @property
    def words(self) -> str:
        """What it is, in words."""
        return f"{self.config.head.kind} policy"

    @property
    def identity(self) -> None:
        """It is no export."""

    @property
    def changed_head(self) -> dict[str, Any]:
        """Fields of the head with which it samples otherwise than it was trained to, and their values."""
        return self.config.head.changed_from(self._trained_head)

    @property
    def observation_spread(self) -> dict[str, list[float]]:
        """Standard deviation of every dimension of the observation's vectors in the demonstrations.

        The mean over the sources, where these have statistics of their own.
        """
        states = [name for name, feature in self.spec.observation.items() if feature.kind not in (*KINDS, *GIVEN)]
        scales = {name: n.scale.double() for name, n in self.normalizers()[:-1] if name in states}
        return {name: (scale.mean(0) if self.sources else scale).tolist() for name, scale in scales.items()}

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width in which it reads each image; it takes frames of that size as well as the camera's own."""
        return image_sizes(self.config.vision, self.spec)

    @property
    def action_spread(self) -> Tensor:
        """The unit (A,) in which errors of actions are judged: the scale of what the net learns of each dimension."""
        scale = self.action_normalizer.scale
        scale = scale.flatten(0, -2).mean(0) if scale.ndim > 1 else scale
        return self.representation.spread(scale, self.chunk.prediction_horizon)

    @property
    def device_name(self) -> str:
        """Where it computes: cpu | cuda | cuda:N."""
        return str(self.action_normalizer.shift.device)

    def settled(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Configuration and device, and the weights."""
        weights = {name: value.cpu().numpy() for name, value in self.state_dict().items()}
        return {"policy": asdict(self.config), "device": self.device_name}, weights

    @property
    def chunk(self) -> ChunkConfig:
        """How much the policy sees, predicts and executes."""
        return self.config.chunk

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one decision: the chunk's own, or larger where the head draws more than once."""
        return self.head.noise_shape(self.chunk_shape)

    def came_from(self, provenance: Provenance) -> None:
        """Notes where the policy comes from."""
        self._provenance = provenance

    def fit_normalizers(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor,
        last: Tensor | None = None,
        parts: Sequence[slice] = (slice(None),),
    ) -> None:
        """Takes the statistics of the demonstrations: each (N, *shape), N control steps.

        Args:
            observation: of every step.
            action: of every step, (N, A).
            last: (N,) the last step of the episode of each step; needed where actions are learned as differences.
            parts: the steps of each source, where these have statistics of their own.
        """
        fit(self, observation, action, last, parts)

    def normalizers(self) -> list[tuple[str, Normalizer]]:
        """All normalizers with the names of their features; the action comes last."""
        named = [(name, module) for name, module in self.observation_normalizers.items()]
        named.append(("action", self.action_normalizer))
        return [(name, module) for name, module in named if isinstance(module, Normalizer)]

    def encode(self, observation: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Conditioning:
        """Conditioning on observation histories (B, O, *shape) in physical units; random with a generator only."""
        normalized, source_BK = dict(observation), self._source(observation)
        for name, normalizer in self.normalizers()[:-1]:
            normalized[name] = normalizer.normalize(observation[name].float(), source_BK)
        return self.encoder(normalized, generator)

    def _source(self, observation: Mapping[str, Tensor]) -> Tensor | None:
        """Whose statistics each row takes, (B, K); None where there is one set of them."""
        return observation[SOURCE][:, -1] if self.sources else None

    def observed(self, batch: Batch) -> dict[str, Tensor]:
        """The observation of a batch with what is given for an episode: its task's vector and its source."""
        return self.given(batch, self.chunk.history)

    def loss(self, batch: Batch, generator: torch.Generator | None = None, draws: int = 1) -> Float[Tensor, ""]:
        """Training loss of a batch of windows; the generator makes its randomness repeatable.

        With several draws the head learns from each window so often, with other noise, and the observation is encoded
        once.
        """
        mask = torch.ones_like(batch.mask) if self.config.chunk.loss_on_padding else batch.mask
        observation = self.observed(batch)
        x1_BTA, cond = self.code(batch.action, observation), self.encode(observation, generator)
        mask = self.fields.narrowed(mask, batch.action, observation)
        if draws > 1:
            x1_BTA, mask = x1_BTA.repeat(draws, 1, 1), mask.repeat(draws, *[1] * (mask.ndim - 1))
            cond = cond.map(lambda part: part.repeat(draws, *[1] * (part.ndim - 1)))
        return self.head.loss(self.net, x1_BTA, cond, mask, generator)

    def sample(
        self, observation: Mapping[str, Tensor], noise: Float[Tensor, "B ..."], prefix: Prefix | None = None
    ) -> Float[Tensor, "B T A"]:
        """Chunks of actions in physical units, decided from observation histories and noise.

        Args:
            observation: each (B, O, *shape), in physical units.
            noise: standard normal, (B, *noise_shape). The same weights, observation and noise give the same actions.
            prefix: what the robots are committed to meanwhile, so that the chunks continue it; None: nothing.

        Raises:
            ValueError: noise or a prefix of another shape; a prefix in a form that the head cannot continue.
        """
        if tuple(noise.shape[1:]) != self.noise_shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected (rows, *{self.noise_shape})")
        if prefix is None:
            return self._compiled(observation, noise) if self._compiled else self.generate(self.net, observation, noise)
        self._require_continues(prefix, len(noise))
        prefix = prefix.converted(lambda action: self.code(action, observation))
        return self.decode(self.head.continue_chunk(self.net, noise, self.encode(observation), prefix), observation)

    def generate(self, net: Net, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """What `sample` computes, with a net in place of the policy's own: the same one compiled, for example."""
        return self.decode(self.head.sample(net, noise, self.encode(observation)), observation)

    def decode(self, x_BTA: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """What heads and nets see, (B, T, C), to actions (B, T, A), decided from these observation histories."""
        columns = self.codec.decode(self.fields.without_absent(x_BTA, observation))
        columns = self.action_normalizer.denormalize(columns, self._source(observation))
        return self.fields.canonical(self.representation.decode(columns, observation))

    def code(self, action: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Actions (B, T, A) to what heads and nets see, (B, T, C): as declared, normalized, choices as analog bits."""
        columns = self.representation.encode(action, observation)
        code = self.codec.encode(self.action_normalizer.normalize(columns, self._source(observation)))
        return self.fields.blank(code, self.fields.counting(action))

    def _require_continues(self, prefix: Prefix, rows: int) -> None:
        """Raises `ValueError` unless the head can continue such a prefix for so many rows."""
        if prefix.form not in self.head.continues:
            able = [kind for kind, (_, head) in sorted(HEADS.items()) if prefix.form in head.continues]
            raise ValueError(
                f"head={self.config.head.kind} cannot continue a chunk with prefix.form={prefix.form!r}; "
                f"heads that can: {', '.join(able)}"
            )
        shape, expected = tuple(prefix.actions_BTA.shape), (rows, self.chunk.prediction_horizon, self.spec.action.size)
        if shape != expected:
            raise ValueError(f"prefix.actions_BTA has shape {shape}, expected {expected}")

    @property
    def continues(self) -> dict[str, int]:
        """The forms of a prefix that the policy can continue, with the longest delay of each in control steps."""
        return self.head.delays(self.chunk.prediction_horizon)

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """`sample` from and to numpy arrays, without gradients: what a controller or a server calls.

        An exported policy has the same method, so that either can stand where a `Planner` is expected.
        """
        device = self.action_normalizer.shift.device
        # Copied, for where numpy's memory begins can decide about the last bits of a product.
        tensors = {name: torch.from_numpy(value).to(device, copy=True) for name, value in observation.items()}
        options: dict[str, Prefix] = {}
        if prefix is not None:
            arrays = (prefix.actions_BTA, prefix.delay_B, prefix.overlap_B)
            actions_BTA, delay_B, overlap_B = (torch.from_numpy(array).to(device) for array in arrays)
            options["prefix"] = Prefix(actions_BTA, delay_B, overlap_B, prefix.form)
        with torch.no_grad():
            return self.sample(tensors, torch.from_numpy(noise).to(device, copy=True), **options).cpu().numpy()

    def with_head(self, /, **fields: Any) -> Policy:
        """A policy with a copy of the weights, whose head samples otherwise: `policy.with_head(steps=10)`.

        It is ready to sample, like one that was loaded, and not compiled. Which fields can be changed after the
        training stands in the `sampling` of each head's configuration.

        Raises:
            ValueError: a field that the head lacks or that its training depends on, or a value that it cannot have.
        """
        config = self.config.head.resampled(fields)
        other = copy.deepcopy(self)
        other.config = replace(self.config, head=config)
        other.head = head_of(config, other.encoder, other.fields)
        other.head.load_state_dict(self.head.state_dict())
        return other.to(self.action_normalizer.shift.device).eval().requires_grad_(False)

    def compile(self, precision: str = "fp32") -> None:
        """Makes `sample` fast from now on, where it is given no prefix; it then has no gradients.

        The weights, and what is saved of the policy, do not change. A copy is not compiled. See `CompiledSampler`.

        Args:
            precision: fp32 (the same chunks to about 1e-6 of an action's spread) | bf16 (to about 1e-2, and
                more for a policy whose actions change steeply).

        Raises:
            ValueError: an unknown precision, or no C++ compiler on this machine.
        """
        self._compiled = CompiledSampler(self, precision)

    def train(self, mode: bool = True) -> Policy:
        """As of every module; to decide, each weight moves to where memory that is allocated for it alone begins.

        Loaded weights lie there, and a product's last bits can depend on it.
        """
        for weight in () if mode else self.parameters():
            if weight.data_ptr() % ALIGNMENT:
                weight.data = weight.data.clone()
        return super().train(mode)

    def __repr__(self) -> str:
        """One line: what it is made of, how large it is, what it sees and does."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        seen = " + ".join(f"{name} {feature.shape}" for name, feature in self.spec.observation.items())
        parts = f"head={self.config.head.kind}, net={self.config.net.kind}, {weights:,} parameters"
        steps = f"history {self.chunk.history}, predicts {self.chunk.prediction_horizon}"
        steps += f", executes {self.chunk.execution_horizon}"
        return f"Policy({parts}, {seen} -> action {self.spec.action.shape}, {steps})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # what was compiled computes with the weights of the original

    def check(self) -> None:
        """Raises `ValueError` naming what is not ready: a missing statistic, a non-finite weight."""
        for name, normalizer in self.normalizers():
            normalizer.require_fitted(name)
        for name, value in self.state_dict().items():
            if not torch.isfinite(value).all():
                raise ValueError(f"weight {name!r} has NaN or infinity; the policy cannot be used")
