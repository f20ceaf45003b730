"""The animated pictures of the README: a trained policy on held-out start states, side by side.

    MUJOCO_GL=osmesa python -m benchmarks.picture --checkpoint outputs/demo/checkpoint
    python -m benchmarks.picture --checkpoint CHECKPOINT --out docs/screens.gif
        --tasks book-flight-nodelay click-checkboxes-large email-inbox-forward

The episodes are those of the evaluation: the first held-out seeds, whatever their outcome; of several tasks of screens
the first one each. Motion plays `SLOWER` times slower than it happened, and an action on a screen stays for `ACTION_S`.
The last image of each episode stays until the longest one is over, and for `PAUSE_S` more.
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
ACTION_S = 0.7
PAUSE_S = 1.5
OVERSAMPLING = 2  # images are rendered so many times as large, and averaged
COLOURS = 96  # of the palette that all images share


def clip(policy: policies.Policy, config: envs.EnvConfig, seed: int, every: int) -> list[np.ndarray]:
    """The images of an episode."""
    kept = Film([seed], every)
    for record in rollout(partial(envs.make, config), Controller(policy, inference_batch=16), [seed], observers=[kept]):
        print(f"seed {record.seed}: {'solved' if record.success else 'not solved'} after {record.steps} steps")
    return kept.frames[seed]


def film(clips: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Images (H, clips * W, 3) of episodes side by side."""
    longest = max(map(len, clips))
    rows = [images + [images[-1]] * (longest - len(images)) for images in clips]
    return [np.concatenate(images, 1) for images in zip(*rows, strict=True)]


def averaged(image: np.ndarray) -> np.ndarray:
    """The image at its final size, each pixel the mean of those that were rendered for it."""
    height, width, _ = image.shape
    blocks = image.reshape(height // OVERSAMPLING, OVERSAMPLING, width // OVERSAMPLING, OVERSAMPLING, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def write_gif(path: Path, frames: list[np.ndarray], image_s: float) -> None:
    """Writes an endless GIF whose images share one palette, so that what stands still does not flicker."""
    sheet = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)]))
    palette = sheet.quantize(COLOURS)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * image_s)] * (len(images) - 1) + [round(1000 * PAUSE_S)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="outputs/demo/checkpoint", help="of the policy")
    parser.add_argument("--episodes", type=int, default=3, help="side by side")
    parser.add_argument("--tasks", nargs="+", default=[], help="of a policy of screens, side by side")
    parser.add_argument("--camera", default="corner4", help="of a Meta-World")
    parser.add_argument("--size", type=int, default=240, help="pixels, height and width of one episode of Meta-World")
    parser.add_argument("--every", type=int, default=2, help="control steps from one image of Meta-World to the next")
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write")
    arguments = parser.parse_args()
    policy = policies.load(arguments.checkpoint)
    world: Any = envs.env_of(policy.provenance)
    if arguments.tasks:
        clips = [clip(policy, replace(world, task=task, zoom=2), FIRST_SEED, 1) for task in arguments.tasks]
        image_s = ACTION_S
    else:
        config = replace(world, camera=arguments.camera, image_size=arguments.size * OVERSAMPLING)
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.episodes)
        large = [clip(policy, config, seed, arguments.every) for seed in seeds]
        clips = [[averaged(image) for image in images] for images in large]
        image_s = SLOWER * arguments.every * policy.spec.seconds()
    frames = film(clips)
    write_gif(arguments.out, frames, image_s)
    print(f"{arguments.out}: {len(frames)} images, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
