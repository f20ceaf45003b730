"""An exported policy as a planner, whatever runs its graph, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..features import ChunkConfig, Spec
from ..planner import NOTHING, PrefixArrays
from ..provenance import Provenance
from ..strict import build, mapping
from .artifact import LOAD_TOLERANCE, MODELS, SCORES_TOLERANCE, Manifest


class Exported:
    """What every runner of an exported policy says of it; with `outputs` it is a `Planner`."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest

    @property
    def spec(self) -> Spec:
        """What it sees and commands."""
        return self.manifest.spec

    @property
    def chunk(self) -> ChunkConfig:
        """How much it sees, predicts and executes."""
        return self.manifest.chunk

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one decision."""
        return self.manifest.noise_shape

    @property
    def continues(self) -> Mapping[str, int]:
        """Nothing: a graph has no prefix."""
        return NOTHING

    @property
    def words(self) -> str:
        """What it is, in words."""
        which = self.identity
        return f"exported policy ({which['format']} {which['precision']}, sha256 {which['sha256'][:12]})"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this export from others."""
        manifest = self.manifest
        return {
            "format": manifest.format,
            "precision": manifest.precision,
            "sha256": manifest.files[MODELS[manifest.format]]["sha256"],
            "max_error": manifest.parity.max_error,
        }

    @property
    def provenance(self) -> Provenance:
        """Where the policy comes from, as its checkpoint said.

        Raises:
            ValueError: the export does not say, or not in this form.
        """
        source = self.manifest.source
        if "provenance" not in source:
            raise ValueError(f"the export does not say what it was trained on; its source is {sorted(source)}")
        return build(Provenance, source["provenance"], "source.provenance")

    @property
    def changed_head(self) -> dict[str, Any]:
        """Fields of the head with which it samples otherwise than the checkpoint it was made from, and their values.

        Raises:
            ValueError: what the export says about it is no mapping.
        """
        return dict(mapping(self.manifest.source.get("head", {}), "source.head"))

    @property
    def observation_spread(self) -> Mapping[str, list[float]]:
        """Standard deviation of every dimension of the observation's vectors in the demonstrations."""
        return self.manifest.observation_spread

    @property
    def device_name(self) -> str:
        """An export runs on the CPU."""
        return "cpu"

    def settled(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Its files, by their hashes."""
        return {"policy": self.manifest.files}, {}

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """Chunks (B, T, A) in physical units from histories, each (B, O, *shape), and noise (B, *noise_shape).

        Raises:
            ValueError: an input that is missing or unknown, or of the wrong shape or dtype; a prefix; a model that
                fails.
        """
        if prefix is not None:
            raise ValueError(f"an export continues no chunks, got prefix.form={prefix.form!r}; give the checkpoint")
        return self.outputs(observation, noise)["action"]

    def outputs(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> dict[str, np.ndarray]:
        """The same chunks as "action", and a monitor's scores (B, D) as "scores" where the export has one."""
        raise NotImplementedError

    def require_golden(self, golden: Mapping[str, np.ndarray]) -> None:
        """Raises `ValueError` unless the golden observations lead to what is stored, within the tolerances."""
        manifest, observation = self.manifest, {name: golden[f"observation.{name}"] for name in self.spec.observation}
        found = self.outputs(observation, golden["noise"])
        error, _, changed = manifest.compare(found["action"], golden["action"])
        allowed = max(LOAD_TOLERANCE, manifest.parity.tolerance)
        here = "this machine or its runtime computes something else"
        if not error <= allowed or changed > manifest.choices_allowed:
            raise ValueError(
                f"the action differs from the stored one by {error:.2g} of the action's spread (allowed {allowed}) and "
                f"in {changed:.1%} of its choices; {here}"
            )
        if manifest.monitor:
            error = manifest.monitor.compare(found["scores"], golden["scores"])
            if not error <= SCORES_TOLERANCE:
                raise ValueError(
                    f"the monitor's scores differ by {error:.2g} from the stored ones (allowed {SCORES_TOLERANCE}); "
                    f"{here}"
                )


def require_own_sampler(path: Path | str, head: Mapping[str, Any]) -> None:
    """Raises `ValueError` if fields of the head are asked for: the sampler of an export is part of its graph."""
    if head:
        asked = " ".join(f"head.{name}={value}" for name, value in head.items())
        raise ValueError(f"{path} is an export, which has its sampler in it; give {asked} to flowhand export")
