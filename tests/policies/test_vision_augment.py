"""Augmentation: what brute force gives, decided by a generator alone, and none of it without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from policies.encoders.vision.augment import coloured, shifted
from tests.policies.vision_cases import SEEN, batch_of, observe, seeing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(rows: int = 6, history: int = 2, size: tuple[int, int] = (9, 12)) -> torch.Tensor:
    return torch.randint(256, (rows, history, *size, 3), generator=generator(7)).to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "reach"), [((9, 12), 3), ((6, 8), 0), ((6, 12), 2), ((9, 12), 9), ((1, 1), 1)], ids=str
)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_shift_is_one_cut_from_an_image_with_repeated_edges(size, reach, kind):
    """Each sample is a part of the padded image, and the drawn places are all that there are."""
    images = pictures(12).to(kind)
    moved = shifted(images, size, reach, generator())
    assert moved.dtype == kind
    assert moved.shape == (12, 2, *size, 3)
    found = set()
    for row in range(12):
        padded = np.pad(images[row].numpy(), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        places = [
            (top, left)
            for top in range(padded.shape[1] - size[0] + 1)
            for left in range(padded.shape[2] - size[1] + 1)
            if np.array_equal(padded[:, top : top + size[0], left : left + size[1]], moved[row].numpy())
        ]
        assert places, f"row {row} is no part of its image"
        found.add(places[0])
    assert len(found) > 3


def test_all_shifts_are_as_frequent():
    images = torch.arange(9).view(1, 1, 3, 3, 1).expand(9000, 1, 3, 3, 1).float()
    counts = shifted(images, (1, 1), 0, generator()).flatten().long().bincount()
    assert (counts - 1000).abs().max() < 150  # five standard deviations
    moved = shifted(torch.arange(5).view(1, 1, 1, 5, 1).expand(9000, 1, 1, 5, 1).float(), (1, 5), 1, generator())
    counts = moved[:, 0, 0, 2, 0].long().bincount()[1:4]
    assert (counts - 3000).abs().max() < 230


def test_without_a_generator_it_is_the_middle():
    images = pictures()
    assert torch.equal(shifted(images, (5, 8), 4, None), images[:, :, 2:7, 2:10])
    assert shifted(images, (9, 12), 4, None).shape == images.shape
    assert coloured(images.float(), 0.5, 0.5, 0.5, None).equal(images.float())


@pytest.mark.parametrize(
    ("place", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
def test_colours_change_as_pillow_changes_them(place, enhance):
    most = [0.0, 0.0, 0.0]
    most[place] = 0.6
    images = pictures(4, 1, (24, 24))
    b, c, s = most
    changed = coloured(images.permute(0, 1, 4, 2, 3).float(), b, c, s, generator())
    draws = torch.rand((3, 4), generator=generator())[place]
    for row in range(4):
        factor = 1 + 0.6 * (2 * draws[row].item() - 1)
        theirs = np.asarray(enhance(Image.fromarray(images[row, 0].numpy())).enhance(factor))
        mine = changed[row, 0].permute(1, 2, 0).numpy()
        assert np.abs(mine - theirs).max() < 2.5  # Pillow rounds greys, and cuts off


def test_one_channel_has_no_saturation():
    grey = pictures()[..., :1].permute(0, 1, 4, 2, 3).float()
    torch.testing.assert_close(coloured(grey, 0.0, 0.0, 0.9, generator()), grey)


OPTIONS = {"crop": [36, 40], "shift": 3, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3}


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_it_follows_from_its_generator_and_is_off_when_deciding(kind):
    options = {**OPTIONS, "crop": [32, 40]} if kind == "vit" else OPTIONS
    policy, batch = seeing(kind, **options), batch_of(seeing(), 3)
    vectors = [policy.encode(batch.observation, generator(seed)).vector_BE for seed in (1, 1, 2)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    state = torch.get_rng_state()
    for train in (True, False):
        policy.train(train)
        assert torch.equal(policy.encode(batch.observation).vector_BE, policy.encode(batch.observation).vector_BE)
    assert torch.equal(torch.get_rng_state(), state)
    losses = [policy.loss(batch, generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert losses[0] != losses[2]


def test_deciding_sees_the_middle_of_the_image():
    policy, observation = seeing(**OPTIONS), observe(SEEN, 2, 2)
    noise = torch.randn(2, *policy.noise_shape)
    edge = observation["camera"].clone()
    edge[:, :, :2], edge[:, :, :, :4] = 0, 255
    first = policy.sample(observation, noise)
    assert torch.equal(policy.sample({**observation, "camera": edge}, noise), first)
    middle = observation["camera"].clone()
    middle[:, :, 10:30, 10:30] = 0
    assert not torch.equal(policy.sample({**observation, "camera": middle}, noise), first)
