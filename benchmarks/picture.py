"""The animated picture of the README: a trained policy on held-out start states, side by side.

    MUJOCO_GL=osmesa python -m benchmarks.picture --checkpoint outputs/demo/checkpoint

The episodes are those of the evaluation: the first held-out seeds, whatever their outcome. They play `SLOWER` times
slower than they happened; the last image of each stays until the longest one is over, and for `PAUSE_S` more.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import envs
import policies
from flowhand.control.controller import Controller
from flowhand.evaluation.rollout import rollout
from flowhand.pages.video import Film

PICTURE = Path("docs/demo.gif")
FIRST_SEED = 1_000_000  # of the evaluation
SLOWER = 4
PAUSE_S = 1.5
OVERSAMPLING = 2  # images are rendered so many times as large, and averaged
COLOURS = 96  # of the palette that all images share


def film(checkpoint: str, episodes: int, camera: str, size: int, every: int) -> tuple[list[np.ndarray], float]:
    """Images (H, episodes * W, 3) of the first held-out episodes, and the seconds from one image to the next."""
    policy = policies.load(checkpoint)
    config: Any = replace(envs.env_of(policy.provenance), camera=camera, image_size=size * OVERSAMPLING)
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    kept = Film(seeds, every)
    for record in rollout(partial(envs.make, config), Controller(policy, inference_batch=16), seeds, observers=[kept]):
        print(f"seed {record.seed}: {'solved' if record.success else 'not solved'} after {record.steps} steps")
    clips = kept.frames
    longest = max(map(len, clips.values()))
    rows = [clips[seed] + [clips[seed][-1]] * (longest - len(clips[seed])) for seed in seeds]
    frames = [averaged(np.concatenate(images, 1)) for images in zip(*rows, strict=True)]
    return frames, every * policy.spec.seconds()


def averaged(image: np.ndarray) -> np.ndarray:
    """The image at its final size, each pixel the mean of those that were rendered for it."""
    height, width, _ = image.shape
    blocks = image.reshape(height // OVERSAMPLING, OVERSAMPLING, width // OVERSAMPLING, OVERSAMPLING, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def write_gif(path: Path, frames: list[np.ndarray], dt_s: float) -> None:
    """Writes an endless GIF whose images share one palette, so that what stands still does not flicker."""
    sheet = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)]))
    palette = sheet.quantize(COLOURS)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * SLOWER * dt_s)] * (len(images) - 1) + [round(1000 * PAUSE_S)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="outputs/demo/checkpoint", help="of a Meta-World policy")
    parser.add_argument("--episodes", type=int, default=3, help="side by side")
    parser.add_argument("--camera", default="corner4", help="of the world")
    parser.add_argument("--size", type=int, default=240, help="pixels, height and width of one episode")
    parser.add_argument("--every", type=int, default=2, help="control steps from one image to the next")
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write")
    arguments = parser.parse_args()
    frames, dt_s = film(arguments.checkpoint, arguments.episodes, arguments.camera, arguments.size, arguments.every)
    write_gif(arguments.out, frames, dt_s)
    print(f"{arguments.out}: {len(frames)} images, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
