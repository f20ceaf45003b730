"""Run by lerobot's own Python: trains ACT for one step on a recorded set, through lerobot's own factories.

python lerobot_trains.py FOLDER
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import sys

import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import make_policy, make_pre_post_processors

SMALL = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_decoder_layers": 1}


def main(folder: str) -> None:
    meta = LeRobotDatasetMetadata("local/set", root=folder)
    config = ACTConfig(
        chunk_size=4, n_action_steps=4, latent_dim=8, pretrained_backbone_weights=None, device="cpu", **SMALL
    )
    data = LeRobotDataset("local/set", root=folder, delta_timestamps=resolve_delta_timestamps(config, meta))
    policy = make_policy(config, ds_meta=meta)
    before, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    batch = before(next(iter(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))))
    loss, _ = policy.forward(batch)
    loss.backward()
    torch.optim.AdamW(policy.parameters(), 1e-3).step()
    sys.stdout.write(f"{len(data)} {len(config.input_features)} {float(loss.detach())}\n")


main(sys.argv[1])
