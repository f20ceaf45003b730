"""Vision encoders: what they give, of which images, and that they learn."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.resize import resized
from policies import EMA, Batch, Policy, PolicyConfig
from policies.config import policy_config
from policies.encoders import ENCODERS, VISION, compose, image_sizes
from policies.encoders.vision.config import ImageConfig
from policies.encoders.vision.spatial_softmax import SpatialSoftmax
from tests.cases import some
from tests.policies.vision_cases import ACTION, CAMERA, SEEN, SIGHTS, batch_of, observe, seeing

ONE = ChunkConfig(history=1, prediction_horizon=4, execution_horizon=2)
CAMERAS = Spec({"right": CAMERA, "left": CAMERA}, ACTION, 0.1)
DEPTH = Feature((40, 48), "uint16", "mm", kind="depth", camera="front")
METRES = Feature((40, 48, 1), "float32", "m", kind="depth")


@pytest.fixture
def sight(tiny, randomize):
    """`sight(kind, spec=, history=, tokens=, **options)`: an encoder with random weights."""

    def make(kind: str, spec: Spec = CAMERAS, history: int = 2, tokens: bool = False, **options):
        encoder = VISION[kind][1](tiny(VISION, kind, **options), spec, history, tokens)
        randomize(encoder)
        return encoder

    return make


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", SIGHTS)
def test_each_row_is_encoded_by_itself_wherever_it_stands(sight, kind, shared):
    encoder, observation = sight(kind, shared=shared, tokens=True), observe(CAMERAS, 5, 2)
    cond = encoder(observation)
    assert cond.vector_BE.shape == (5, encoder.size)
    assert cond.tokens == encoder.tokens
    for rows in ([2], [4, 2, 2, 0]):
        some = encoder({name: value[rows] for name, value in observation.items()})
        torch.testing.assert_close(some.vector_BE, cond.vector_BE[rows])
        torch.testing.assert_close(some.tokens_BNW, cond.tokens_BNW[rows])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", SIGHTS)
def test_every_camera_at_every_step_matters(sight, kind, shared):
    encoder, observation = sight(kind, shared=shared, tokens=True), observe(CAMERAS, 2, 2)
    before = encoder(observation)
    for name in observation:
        for step in range(2):
            changed = observation[name].clone()
            changed[0, step, 4:32, 4:32] = 255 - changed[0, step, 4:32, 4:32]
            after = encoder({**observation, name: changed})
            assert (after.vector_BE[0] - before.vector_BE[0]).abs().max() > 1e-4, (name, step)
            torch.testing.assert_close(after.vector_BE[1], before.vector_BE[1])
            moved = (after.tokens_BNW[0] - before.tokens_BNW[0]).abs().amax(1) > 1e-4
            own = moved.unflatten(0, (2, 2, -1)).any(-1)  # camera in the order of the names, step
            assert own.tolist() == [[(n, s) == (name, step) for s in range(2)] for n in sorted(observation)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", SIGHTS)
def test_gradients_reach_every_weight(sight, kind, shared):
    encoder = sight(kind, shared=shared, tokens=True)
    cond = encoder(observe(CAMERAS, 4, 2), torch.Generator().manual_seed(0))
    (cond.vector_BE.square().sum() + cond.tokens_BNW.square().sum()).backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


def test_cameras_share_weights_only_if_they_are_to(sight):
    shared, own = sight("conv", shared=True), sight("conv")
    assert set(shared.backbones) == {"shared"}
    assert set(own.backbones) == {"left", "right"}
    for encoder, network in ((shared, "shared"), (own, "left")):
        own_alone = copy.deepcopy(encoder)
        with torch.no_grad():
            for p in own_alone.backbones[network].parameters():
                p.mul_(1.5)
        observation = observe(CAMERAS, 2, 2)
        seen = {name: encoder.pictures[name](observation[name]) for name in observation}
        changed = [
            not torch.equal(*(each.backbones["shared" if each.shared else name](seen[name])[0] for each in pair))
            for name in ("left", "right")
            for pair in [(encoder, own_alone)]
        ]
        assert changed == [True, encoder is shared]


@pytest.mark.parametrize("kind", SIGHTS)
def test_only_the_newest_frames_are_read_if_so_asked(sight, kind):
    encoder, observation = sight(kind, history=3, frames=1), observe(CAMERAS, 2, 3)
    older = {name: torch.cat([255 - value[:, :2], value[:, 2:]], dim=1) for name, value in observation.items()}
    assert torch.equal(encoder(observation).vector_BE, encoder(older).vector_BE)
    newer = {name: torch.cat([value[:, :2], 255 - value[:, 2:]], dim=1) for name, value in observation.items()}
    assert not torch.equal(encoder(observation).vector_BE, encoder(newer).vector_BE)


@pytest.mark.parametrize("feature", [DEPTH, METRES])
def test_depth_is_scaled_by_its_statistics(feature):
    spec = Spec({"depth": feature, "camera": CAMERA}, ACTION, 0.1)
    policy = seeing(spec=spec)
    frames = observe(spec, 200, 1)["depth"][:, 0].double()
    normalizer = dict(policy.normalizers())["depth"]
    torch.testing.assert_close(normalizer.shift.double(), frames.mean().view(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalizer.scale.double(), frames.std(correction=0).view(1), rtol=1e-5, atol=1e-5)
    batch = batch_of(policy)
    picture = policy.encoder.get_submodule("pictures.depth")
    normalized = (batch.observation["depth"].float() - normalizer.shift) / normalizer.scale
    expected = normalized.view(8, 1, 40, 48)
    assert torch.equal(picture(normalized), expected)
    noise = torch.randn(4, *policy.noise_shape)
    before = policy.sample(batch.observation, noise)
    other = {**batch.observation, "depth": batch.observation["depth"].flip(2)}
    assert not torch.equal(policy.sample(other, noise), before)
    assert set(policy.observation_spread) == set()


@pytest.mark.parametrize("kind", SIGHTS)
def test_images_are_resized_once_and_as_everywhere(sight, kind):
    spec = Spec({"left": Feature((57, 70, 3), "uint8", "")}, ACTION, 0.1)
    encoder, observation = sight(kind, spec, image_size=[40, 48]), observe(spec, 3, 2)
    small = torch.from_numpy(resized(observation["left"].numpy(), (40, 48)))
    picture = encoder.pictures["left"]
    assert (picture(observation["left"]) - picture(small)).abs().max() <= 1.001 / 127.5  # one grey level
    same = (picture(observation["left"]) - picture(small)).abs() < 1e-6
    assert same.float().mean() > 0.999
    torch.testing.assert_close(encoder({"left": small}).vector_BE, encoder(observation).vector_BE, atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match=r"'left' have \(40, 49\) pixels, expected \(57, 70\), .* or \(40, 48\)"):
        encoder({"left": torch.zeros(1, 2, 40, 49, 3, dtype=torch.uint8)})


def test_autocast_resizes_in_full_precision(sight):
    spec = Spec({"left": Feature((57, 70, 3), "uint8", "")}, ACTION, 0.1)
    encoder, observation = sight("conv", spec, image_size=[40, 48]), observe(spec, 3, 2)
    exact = encoder.pictures["left"](observation["left"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.pictures["left"](observation["left"]), exact)


def test_the_sizes_in_which_images_are_read_are_told_without_a_policy():
    spec = Spec({**SEEN.observation, "depth": DEPTH}, ACTION, 0.1)
    config = VISION["conv"][0](image_size=[24, 32])
    assert image_sizes(config, spec) == {"camera": (24, 32), "depth": (24, 32)}
    assert image_sizes(VISION["vit"][0](), spec) == {"camera": (40, 48), "depth": (40, 48)}
    assert seeing(image_size=[24, 32]).image_sizes == {"camera": (24, 32)}


def test_spatial_softmax_is_the_mean_place():
    """Of two cells with shares p and 1 - p; moved by a cell, the mean moves by a cell: 2 / cells."""
    softmax, maps = SpatialSoftmax(5, 8), torch.full((1, 1, 5, 8), -1e4)
    maps[0, 0, 1, 2], maps[0, 0, 3, 6] = torch.tensor([0.3, 0.7]).log()
    x, y = softmax(maps)[0].tolist()
    assert x == pytest.approx(0.3 * (2 * 2.5 / 8 - 1) + 0.7 * (2 * 6.5 / 8 - 1), abs=1e-6)
    assert y == pytest.approx(0.3 * (2 * 1.5 / 5 - 1) + 0.7 * (2 * 3.5 / 5 - 1), abs=1e-6)
    moved = softmax(maps.roll((1, 1), (2, 3)))[0]
    torch.testing.assert_close(moved, torch.tensor([x + 2 / 8, y + 2 / 5]))
    uniform = softmax(torch.zeros(2, 3, 5, 8))
    torch.testing.assert_close(uniform, torch.zeros(2, 6), atol=1e-6, rtol=0)


def test_spatial_softmax_follows_a_gaussian_between_the_cells():
    softmax, places = SpatialSoftmax(24, 24), torch.linspace(-0.3, 0.3, 7)
    cells = (2 * torch.arange(24) + 1) / 24 - 1
    maps = -((cells[None, None, :, None] - 0.1) ** 2 + (cells - places[:, None, None, None]) ** 2) / (2 * 0.1**2)
    found = softmax(maps)
    torch.testing.assert_close(found[:, 0], places, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 1], torch.full((7,), 0.1), atol=1e-4, rtol=0)


def step(policy: Policy, batch: Batch, optimizer: torch.optim.Optimizer, **options) -> float:
    loss = policy.loss(batch, torch.Generator().manual_seed(0), **options)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize("kind", some(SIGHTS, ["conv", "vit"]))
def test_one_batch_is_learned_by_heart(kind, randomize):
    policy = seeing(
        kind, head="regression", chunk=ONE, random_weights=False, options={"width": 32}, width=32, features=16, shift=0
    )
    randomize(policy.net)  # from its own start, at zero, it takes longer
    batch = batch_of(policy, 4)
    batch.observation["state"][:] = 0  # the images alone tell
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3 if kind == "resnet18" else 3e-3)
    losses = [step(policy, batch, optimizer) for _ in range(25)]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("kind", SIGHTS)
def test_an_average_without_memory_is_the_policy(kind):
    policy = seeing(kind, random_weights=False)
    average, batch = EMA(policy, 0.0), batch_of(policy)
    step(policy, batch, torch.optim.Adam(policy.parameters(), 1e-3))
    noise = torch.randn(4, *policy.noise_shape)
    assert not torch.equal(average.module.sample(batch.observation, noise), policy.sample(batch.observation, noise))
    average.update()
    torch.testing.assert_close(average.module.state_dict(), policy.state_dict(), rtol=0, atol=0)
    assert torch.equal(average.module.sample(batch.observation, noise), policy.sample(batch.observation, noise))


@pytest.mark.parametrize("head", ["flow", "diffusion", "regression", "mip", "drift"])
def test_several_draws_are_the_same_loss_of_a_batch_that_repeats(head):
    """The windows, three times one after the other, meet the same noise as three draws of them."""
    policy, batch = seeing(head=head, shift=0), batch_of(seeing(), 4)
    again = Batch(
        {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in batch.observation.items()},
        batch.action.repeat(3, 1, 1),
        batch.mask.repeat(3, 1),
    )
    losses = [
        policy.loss(batch, torch.Generator().manual_seed(5), draws=3),
        policy.loss(again, torch.Generator().manual_seed(5)),
    ]
    torch.testing.assert_close(*losses)


def test_several_draws_encode_once_and_repeat_tokens_too():
    policy = seeing("vit", net="transformer", options={"cross_attention": True})
    rows = []
    policy.encoder.register_forward_hook(lambda module, args, cond: rows.append(len(cond)))
    loss = policy.loss(batch_of(policy, 4), torch.Generator().manual_seed(0), draws=3)
    assert loss.isfinite()
    assert rows == [4]


def squares(rows: int, generator: torch.Generator) -> Batch:
    """A bright square somewhere in a grey image, and its place as the action, the same at each step of the chunk."""
    place = torch.randint(0, 33, (rows, 2), generator=generator)
    images = torch.randint(0, 100, (rows, 1, 40, 40, 3), generator=generator).to(torch.uint8)
    cells = torch.arange(40)
    inside = [(cells >= place[:, i : i + 1]) & (cells < place[:, i : i + 1] + 8) for i in range(2)]
    images[(inside[0][:, :, None] & inside[1][:, None])[:, None]] = 230
    action = (place.float() / 16 - 1)[:, None].expand(-1, 2, -1).contiguous()
    return Batch({"camera": images}, action, torch.ones(rows, 2, dtype=torch.bool))


@pytest.mark.parametrize(("kind", "steps"), some([("conv", 50), ("vit", 80)], [("conv", 50)]))
def test_a_policy_learns_to_point_at_what_it_sees(kind, steps, randomize):
    spec = Spec({"camera": Feature((40, 40, 3), "uint8", "")}, ACTION, 0.1)
    chunk = ChunkConfig(history=1, prediction_horizon=2, execution_horizon=1)
    policy = seeing(
        kind, "mlp", "regression", spec, chunk, False, {"width": 32}, width=32, features=16, keypoints=8, shift=0
    )
    randomize(policy.net)
    random = torch.Generator().manual_seed(1)
    held_out = squares(64, random)
    policy.fit_normalizers({}, held_out.action.flatten(0, 1))
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - number / steps)
        step(policy, squares(16, random), optimizer)
    with torch.no_grad():
        found = policy.eval().sample(held_out.observation, torch.zeros(64, 2, 2))
    error = (found - held_out.action).square().mean().sqrt()
    assert error < 0.6 * held_out.action.std()


def test_a_checkpoint_from_before_there_was_vision_has_none(make_policy):
    stored = policy_config_as_stored(make_policy().config)
    del stored["vision"]
    assert policy_config(stored).vision.kind == "none"


def policy_config_as_stored(config: PolicyConfig) -> dict:
    from dataclasses import asdict

    return asdict(config)


def test_a_configuration_survives_its_json():
    config = seeing("vit", registers=2, image_size=[24, 32]).config
    assert policy_config(policy_config_as_stored(config)) == config
    with pytest.raises(ValueError, match=r"policy.vision.kind is 'eagle'; choices: conv, none, resnet18, vit"):
        policy_config({**policy_config_as_stored(config), "vision": {"kind": "eagle"}})


def test_an_image_without_vision_is_refused_with_what_to_choose(tiny):
    encoders = [(tiny(ENCODERS, "state"), ENCODERS["state"][1])]
    with pytest.raises(
        ValueError,
        match=r"encoder=state takes float32 vectors, but the observation 'camera' is uint8 of shape \(40, 48, 3\); "
        r"choose vision=conv, resnet18 or vit, or leave it out of the observation",
    ):
        compose(encoders, SEEN, 2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("conv", {"image_size": [8]}, r"vision.image_size=\[8\] must be \[height,width\] of 1..1024 pixels, or \[\]"),
        ("conv", {"crop": [2000, 8]}, r"vision.crop=\[2000, 8\] must be"),
        ("conv", {"crop": [40, 49]}, r"vision.crop=\[40, 49\] is larger than the images 'right', .* \[40, 48\]"),
        ("conv", {"frames": 3}, r"vision.frames=3 is more than chunk.history=2 observations"),
        ("conv", {"shift": -1}, r"vision.shift=-1 must lie in 0..1024"),
        ("conv", {"contrast": 1.0}, r"vision.contrast=1.0 must lie in \[0, 1\)"),
        ("conv", {"features": 0}, r"vision.features=0 must lie in 1..65536"),
        ("conv", {"channels": 24}, r"vision.channels=24 must be a multiple of 16"),
        ("conv", {"image_size": [6, 8]}, r"vision=conv needs images of 8 x 8 pixels, got 6 x 8"),
        (
            "resnet18",
            {"image_size": [32, 64]},
            r"vision=resnet18 needs images of more than 32 x 32 pixels, got 32 x 64",
        ),
        ("resnet18", {"weights": "file"}, r"vision.channels=16 must be 64 with vision.weights"),
        ("vit", {"patch": 7}, r"vision.patch=7 must divide the images' 40 x 48 pixels"),
        ("vit", {"heads": 3}, r"vision.token_width=16 must be a multiple of vision.heads=3"),
        ("vit", {"registers": -1}, r"vision.registers=-1 must lie in 0..1024"),
    ],
)
def test_errors(sight, kind, options, message):
    with pytest.raises(ValueError, match=message):
        sight(kind, **options)


def test_cameras_of_two_shapes_share_no_weights(sight):
    spec = Spec({"left": CAMERA, "wrist": Feature((40, 40, 3), "uint8", "")}, ACTION, 0.1)
    with pytest.raises(ValueError, match=r"vision.shared=true needs images of one shape; 'left' has .*, 'wrist' has"):
        sight("conv", spec, shared=True)
    assert sight("conv", spec, shared=True, image_size=[40, 40])(observe(spec, 1, 2)).vector_BE.shape == (1, 16)


def test_every_field_is_one_of_the_tables():
    assert all(issubclass(VISION[kind][0], ImageConfig) for kind in SIGHTS)
    assert replace(VISION["conv"][0](), frames=1).frames == 1
