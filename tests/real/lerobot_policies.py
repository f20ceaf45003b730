"""Run by lerobot's own Python: small policies of lerobot, and what they decide by `select_action`.

python lerobot_policies.py FOLDER GIVEN.npz: writes FOLDER/act and FOLDER/diffusion, and into GIVEN.npz the actions that
each gives from a seed, one control step after the other while the observation stays.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

SIZE = 96
SMALL: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 8, "n_action_steps": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32,
        "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 4, "pretrained_backbone_weights": None,
    },
    "diffusion": {
        "n_obs_steps": 2, "horizon": 8, "n_action_steps": 6, "down_dims": (32, 64), "num_train_timesteps": 5,
        "crop_shape": None, "crop_ratio": 1.0, "spatial_softmax_num_keypoints": 4, "pretrained_backbone_weights": None,
        "drop_n_last_frames": 1,
    },
}  # fmt: skip


def make(kind: str, folder: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    """Writes the policy; the actions (8, A) that it gives from seed 7."""
    seen = {
        "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(6,)),
        "observation.images.front": PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE)),
    }
    action = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(6,))}
    fields = {name: value for name, value in SMALL[kind].items() if _has(kind, name)}
    config = make_policy_config(kind, input_features=seen, output_features=action, device="cpu", **fields)
    torch.manual_seed(0)
    policy = get_policy_class(kind)(config)
    policy.eval()
    numbers = np.random.default_rng(0)
    stats: dict[str, Any] = {}
    for name, size in (("observation.state", 6), ("action", 6)):
        mean = torch.from_numpy(numbers.normal(size=size).astype(np.float32))
        stats[name] = {"mean": mean, "std": torch.ones(size) * 0.5, "min": mean - 1, "max": mean + 1}
    ones = torch.ones(3, 1, 1)
    stats["observation.images.front"] = {"mean": ones * 0.4, "std": ones * 0.3, "min": ones * 0, "max": ones}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    policy.reset()
    torch.manual_seed(7)
    actions = []
    for _ in range(4):
        picture = torch.from_numpy(given["front"]).permute(2, 0, 1).float() / 255
        batch = {"observation.state": torch.from_numpy(given["state"]), "observation.images.front": picture}
        with torch.inference_mode():
            actions.append(after(policy.select_action(before(batch))).numpy().reshape(-1))
    return np.stack(actions)


def _has(kind: str, name: str) -> bool:
    from dataclasses import fields

    return name in [each.name for each in fields(type(make_policy_config(kind)))]


if __name__ == "__main__":
    place, kept = Path(sys.argv[1]), Path(sys.argv[2])
    random = np.random.default_rng(3)
    observed = {
        "state": random.normal(size=6).astype(np.float32),
        "front": random.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8),
    }
    told = {kind: make(kind, place / kind, observed) for kind in SMALL}
    np.savez(kept, **observed, **told)  # pyright: ignore[reportArgumentType]
