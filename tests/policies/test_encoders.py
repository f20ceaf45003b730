import pytest
import torch

from flowhand.contracts.features import Feature, Spec
from policies.encoders import ENCODERS

ACTION = Feature((2,), "float32", "N")
VECTORS = Spec({"state": Feature((3,), "float32", "m"), "goal": Feature((2,), "float32", "m")}, ACTION, 0.1)
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
@pytest.mark.parametrize("kind", ENCODERS)
def test_each_row_is_encoded_by_itself(make_encoder, kind, rows, history):
    spec = SPECS.get(kind, VECTORS)
    encoder = make_encoder(kind, history)
    observation = observe(spec, rows, history)
    cond = encoder(observation).vector_BE
    assert cond.shape == (rows, encoder.size)
    for i in range(rows):
        alone = encoder({name: value[i : i + 1] for name, value in observation.items()}).vector_BE
        torch.testing.assert_close(alone, cond[i : i + 1])


@pytest.mark.parametrize("kind", ENCODERS)
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


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_order_of_the_features_does_not_matter(make_encoder, kind):
    spec = SPECS.get(kind, VECTORS)
    reverse = Spec(dict(reversed(spec.observation.items())), spec.action, spec.control_dt_s)
    first, second = make_encoder(kind, 2), make_encoder(kind, 2, reverse)
    second.load_state_dict(first.state_dict())
    observation = observe(spec, 3, 2)
    backwards = second(dict(reversed(observation.items())))
    assert torch.equal(first(observation).vector_BE, backwards.vector_BE)


@pytest.mark.parametrize("kind", ENCODERS)
def test_gradients_reach_every_weight(make_encoder, kind):
    encoder = make_encoder(kind, 2)
    encoder(observe(SPECS.get(kind, VECTORS), 4, 2)).vector_BE.square().sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


@pytest.mark.parametrize("feature", [Feature((4, 6, 3), "uint8", ""), Feature((2, 2), "float32", "m")])
def test_the_state_encoder_refuses_what_is_no_vector(make_encoder, feature):
    spec = Spec({"state": VECTORS.observation["state"], "camera": feature}, ACTION, 0.1)
    with pytest.raises(
        ValueError, match=f"encoder=state takes float32 vectors, but the observation 'camera' is {feature.dtype}"
    ):
        make_encoder("state", 2, spec)


def test_a_width_below_one_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"encoder.width=0 must be at least 1"):
        tiny(ENCODERS, "state", width=0)
