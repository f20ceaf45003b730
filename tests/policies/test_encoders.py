import pytest
import torch

from flowhand.contracts.features import Feature, Spec
from policies.conditioning import Conditioning
from policies.encoders import ENCODERS, Encoder, EncoderConfig, compose
from policies.encoders.fused import FusedEncoder
from policies.encoders.state import StateEncoder, StateEncoderConfig

ACTION = Feature((2,), "float32", "N")
VECTORS = Spec({"state": Feature((3,), "float32", "m"), "goal": Feature((2,), "float32", "m")}, ACTION, 0.1)
OF_VECTORS = [kind for kind in ENCODERS if kind != "elements"]  # that one has tests of its own
SPECS = {"state": VECTORS}  # what an encoder is tested with, where it is not vectors


@pytest.fixture
def make_encoder(tiny, randomize):
    def make(kind: str, history: int, spec: Spec | None = None):
        encoder = ENCODERS[kind][1](tiny(ENCODERS, kind), spec or SPECS.get(kind, VECTORS), history)
        randomize(encoder)
        return encoder

    return make


def observe(spec: Spec, rows: int, history: int) -> dict[str, torch.Tensor]:
    """Random observations; images as bytes."""
    return {
        name: torch.randn(rows, history, *f.shape)
        if f.dtype == "float32"
        else torch.randint(256, (rows, history, *f.shape), dtype=torch.uint8)
        for name, f in spec.observation.items()
    }


@pytest.mark.parametrize(("rows", "history"), [(5, 2), (2, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("kind", OF_VECTORS)
def test_each_row_is_encoded_by_itself(make_encoder, kind, rows, history):
    spec = SPECS.get(kind, VECTORS)
    encoder = make_encoder(kind, history)
    observation = observe(spec, rows, history)
    cond = encoder(observation).vector_BE
    assert cond.shape == (rows, encoder.size)
    for i in range(rows):
        alone = encoder({name: value[i : i + 1] for name, value in observation.items()}).vector_BE
        torch.testing.assert_close(alone, cond[i : i + 1])


@pytest.mark.parametrize("kind", OF_VECTORS)
def test_every_feature_at_every_step_of_the_history_matters(make_encoder, kind):
    spec = SPECS.get(kind, VECTORS)
    encoder = make_encoder(kind, 3)
    observation = observe(spec, 2, 3)
    before = encoder(observation).vector_BE
    for name in observation:
        for step in range(3):
            changed = observation[name].clone()
            changed[0, step] += 1
            after = encoder({**observation, name: changed}).vector_BE
            assert (after[0] - before[0]).abs().max() > 1e-4, (name, step)
            assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("kind", OF_VECTORS)
def test_the_order_of_the_features_does_not_matter(make_encoder, kind):
    spec = SPECS.get(kind, VECTORS)
    reverse = Spec(dict(reversed(spec.observation.items())), spec.action, spec.control_dt_s)
    first, second = make_encoder(kind, 2), make_encoder(kind, 2, reverse)
    second.load_state_dict(first.state_dict())
    observation = observe(spec, 3, 2)
    backwards = second(dict(reversed(observation.items())))
    assert torch.equal(first(observation).vector_BE, backwards.vector_BE)


@pytest.mark.parametrize("kind", OF_VECTORS)
def test_gradients_reach_every_weight(make_encoder, kind):
    encoder = make_encoder(kind, 2)
    encoder(observe(SPECS.get(kind, VECTORS), 4, 2)).vector_BE.square().sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


@pytest.mark.parametrize("feature", [Feature((4, 6, 3), "uint8", ""), Feature((2, 2), "float32", "m")])
def test_a_feature_that_no_encoder_takes_is_named(feature):
    spec = Spec({"state": VECTORS.observation["state"], "camera": feature}, ACTION, 0.1)
    with pytest.raises(
        ValueError, match=f"encoder=state takes float32 vectors, but the observation 'camera' is {feature.dtype}"
    ):
        compose([(StateEncoderConfig(), StateEncoder)], spec, 2)


def test_a_width_below_one_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"encoder.width=0 must be at least 1"):
        tiny(ENCODERS, "state", width=0)


# --- several kinds in one observation


class Patches(Encoder):
    """An image's rows as tokens, the first of which do not count; the vector is its mean."""

    takes = "images"

    def __init__(self, config, spec, history, tokens=False):
        super().__init__()
        self.name = next(iter(spec.observation))
        rows, columns, channels = spec.observation[self.name].shape
        self.size, self.tokens = 1, (rows, columns * channels)

    @staticmethod
    def accepts(feature):
        return feature.dtype == "uint8"

    def forward(self, observation, generator=None):
        tokens = observation[self.name][:, -1].float().flatten(2) / 255
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        mask[:, 0] = False
        return Conditioning(tokens.mean((1, 2))[:, None], tokens, mask)


BOTH = Spec({**VECTORS.observation, "camera": Feature((4, 6, 3), "uint8", "")}, ACTION, 0.1)
PAIR = [(StateEncoderConfig(width=16), StateEncoder), (EncoderConfig("patches"), Patches)]


@pytest.mark.parametrize("asked", [True, False])
def test_kinds_are_fused_into_one_conditioning(asked):
    encoder, observation = compose(PAIR, BOTH, 2, asked), observe(BOTH, 3, 2)
    assert isinstance(encoder, FusedEncoder)
    cond = encoder(observation)
    assert cond.vector_BE.shape == (3, encoder.size) == (3, 17)
    states = 2 * 2 if asked else 0  # two vectors, two steps of history, a quarter of the width of 16
    assert encoder.tokens == (states + 4, 18)
    assert cond.tokens_BNW is not None
    assert cond.mask_BN is not None
    assert cond.tokens_BNW.shape == (3, *encoder.tokens)
    assert cond.mask_BN.tolist() == [[True] * states + [False, True, True, True]] * 3
    state, camera = (encoder.parts[kind](observation) for kind in ("state", "patches"))
    assert torch.equal(cond.vector_BE, torch.cat([state.vector_BE, camera.vector_BE], dim=1))
    assert torch.equal(cond.tokens_BNW[:, states:], camera.tokens_BNW)
    assert set(encoder.widen) == ({"state"} if asked else set())


def test_of_a_single_kind_there_is_nothing_to_fuse():
    """So the weights keep the names that they had before there were kinds."""
    encoder = compose(PAIR, VECTORS, 2)
    assert isinstance(encoder, StateEncoder)
    assert set(encoder.state_dict()) == {f"layers.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
