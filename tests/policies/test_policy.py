from dataclasses import replace

import pytest
import torch

from flowhand.contracts.features import ChunkConfig
from flowhand.contracts.planner import Planner
from policies import Batch, Policy, PolicyConfig
from policies.encoders import ENCODERS
from policies.encoders.base import EncoderConfig
from policies.heads import HEADS
from policies.heads.base import HeadConfig
from policies.nets import NETS
from policies.nets.base import NetConfig
from tests.cases import each_head_and_each_net, some

COMBINATIONS = [(e, net, head) for e in ENCODERS if e != "elements" for net in NETS for head in HEADS]


@pytest.fixture(params=[pytest.param(c.values, id=c.id, marks=c.marks) for c in each_head_and_each_net(COMBINATIONS)])
def policy(request, make_policy) -> Policy:
    return make_policy(*request.param)


def sample(policy: Policy, batch: Batch, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(batch.action.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return policy.sample(batch.observation, noise)


@pytest.mark.parametrize("policy", COMBINATIONS, indirect=True, ids="-".join)
def test_loss_and_chunks_are_finite_and_of_the_right_shape(policy, make_batch):
    for rows in (1, 2, 4):  # 2: as many as actions; 4: as many as steps
        batch = make_batch(policy, rows)
        assert policy.loss(batch).shape == ()
        assert policy.loss(batch).isfinite()
        chunks = sample(policy, batch)
        assert chunks.shape == (rows, 4, 2)
        assert chunks.isfinite().all()


def test_the_same_noise_gives_the_same_action_and_sampling_uses_no_other_randomness(policy, make_batch):
    batch = make_batch(policy)
    first = sample(policy, batch)
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    assert torch.equal(sample(policy, batch), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_alone_decides_the_loss(policy, make_batch):
    batch = make_batch(policy)
    state = torch.get_rng_state()
    losses = [policy.loss(batch, torch.Generator().manual_seed(seed)) for seed in (3, 3)]
    assert torch.equal(*losses)
    assert torch.equal(torch.get_rng_state(), state)


def test_units_do_not_matter(policy, make_batch):
    """Observations in millimetres and actions in other units, with the statistics to match, are the same decision."""
    demonstrated = make_batch(policy, 200)
    batch = make_batch(policy)

    def decide(observation_unit: float, action_unit: float) -> torch.Tensor:
        observation = {name: v.flatten(0, 1) * observation_unit for name, v in demonstrated.observation.items()}
        policy.fit_normalizers(observation, demonstrated.action.flatten(0, 1) * action_unit)
        scaled = {name: v * observation_unit for name, v in batch.observation.items()}
        return sample(policy, Batch(scaled, batch.action, batch.mask)) / action_unit

    torch.testing.assert_close(decide(1e3, 0.1), decide(1.0, 1.0), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("unit", "offset"),
    some([(1.0, 0.0), (1e-5, 0.0), (1e-9, 0.0), (1e9, 0.0), (1e-3, 1000.0)], [(1e-9, 0.0), (1e-3, 1000.0)]),
)
def test_actions_and_observations_of_any_size_are_learned(make_policy, unit, offset):
    """The action follows from the observation; both are small, large, or lie beside an offset."""
    policy = make_policy(head="regression", random_weights=False, width=32)
    seen = torch.rand(64, 2, 3) * 2 - 1
    action = seen[:, -1:, :2].expand(-1, 4, -1)
    rows = {"state": unit * seen + offset, "goal": torch.zeros(64, 2, 2)}
    batch = Batch(rows, unit * action + offset, torch.ones(64, 4, dtype=torch.bool))
    policy.fit_normalizers({name: v.flatten(0, 1) for name, v in rows.items()}, batch.action.flatten(0, 1))
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 100)
        policy.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    error = ((sample(policy, batch) - batch.action) / unit).square().mean().sqrt()
    assert error < 0.1


def test_an_untrained_regression_gives_the_mean_action(make_policy, make_batch):
    """The net starts at zero, and zero is the mean: what comes out has been carried back to physical units."""
    policy = make_policy(head="regression", random_weights=False)
    action = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    policy.fit_normalizers({"state": torch.randn(9, 3), "goal": torch.randn(9, 2)}, action)
    assert sample(policy, make_batch(policy))[0].tolist() == [[2.0, 20.0]] * 4


def test_the_loss_of_an_untrained_regression_is_the_variance(make_policy, make_batch):
    """Of the normalized actions where the mask counts them, hence 1 for the data that gave the statistics."""
    policy = make_policy(head="regression", random_weights=False)
    batch = make_batch(policy, 50)
    batch.mask[:] = True
    policy.fit_normalizers({n: v.flatten(0, 1) for n, v in batch.observation.items()}, batch.action.flatten(0, 1))
    torch.testing.assert_close(policy.loss(batch), torch.tensor(1.0))
    batch.mask[:, 1:] = False
    first = policy.action_normalizer.normalize(batch.action[:, 0])
    torch.testing.assert_close(policy.loss(batch), first.square().mean())


@pytest.mark.parametrize("counts", [False, True])
def test_padding_is_learned_only_if_the_configuration_says_so(make_policy, make_batch, counts):
    chunk = ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2, loss_on_padding=counts)
    policy = make_policy(head="regression", chunk=chunk)
    batch = make_batch(policy)
    before = policy.loss(batch)
    batch.action[~batch.mask] += 10
    assert torch.equal(policy.loss(batch), before) != counts


def test_statistics_go_to_the_feature_they_belong_to(make_policy):
    policy = make_policy()
    observation = {"goal": torch.full((9, 2), 5.0), "state": torch.full((9, 3), 3.0)}
    policy.fit_normalizers(observation, torch.full((9, 2), 7.0))
    shifts = {name: normalizer.shift.tolist() for name, normalizer in policy.normalizers()}
    assert shifts == {"state": [3.0] * 3, "goal": [5.0] * 2, "action": [7.0] * 2}


def test_each_group_is_normalized_in_its_own_mode(spec, tiny):
    config = PolicyConfig(net=tiny(NETS, "mlp"), encoder=tiny(ENCODERS, "state"))
    config.normalizer.observation, config.normalizer.action = "min_max", "identity"
    policy = Policy(config, spec)
    policy.fit_normalizers({"state": torch.tensor([[0.0] * 3, [4.0] * 3]), "goal": torch.ones(2, 2)}, torch.randn(2, 2))
    scales = {name: normalizer.scale.tolist() for name, normalizer in policy.normalizers()}
    assert scales == {"state": [2.0] * 3, "goal": [1.0] * 2, "action": [1.0] * 2}


def test_a_policy_without_statistics_is_not_ready(spec, tiny):
    policy = Policy(PolicyConfig(net=tiny(NETS, "mlp"), encoder=tiny(ENCODERS, "state")), spec)
    with pytest.raises(ValueError, match="the statistics of 'state' are missing"):
        policy.check()
    noise = torch.randn(1, *policy.chunk_shape)
    observation = {"state": torch.zeros(1, 2, 3), "goal": torch.zeros(1, 2, 2)}
    assert policy.sample(observation, noise).isnan().all()


def test_a_weight_that_is_not_finite_is_named(policy):
    policy.check()
    name, weight = list(policy.named_parameters())[-1]
    weight.data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"weight '{name}' has NaN or infinity; the policy cannot be used"):
        policy.check()


@pytest.mark.parametrize(
    ("group", "config"), [("encoder", EncoderConfig()), ("net", NetConfig()), ("head", HeadConfig("telepathy"))]
)
def test_an_unknown_component_is_an_error_that_lists_the_known(spec, group, config):
    table = {"encoder": ENCODERS, "net": NETS, "head": HEADS}[group]
    with pytest.raises(ValueError, match=f"{group}='.*' is unknown; choices: {', '.join(sorted(table))}"):
        Policy(PolicyConfig(**{group: config}), spec)


@pytest.mark.parametrize("field", ["history", "prediction_horizon", "execution_horizon"])
def test_a_horizon_below_one_is_an_error(field):
    with pytest.raises(ValueError, match=rf"chunk.{field}=0 must be at least 1"):
        replace(ChunkConfig(), **{field: 0})


def test_executing_more_than_is_predicted_is_an_error():
    with pytest.raises(ValueError, match=r"chunk.execution_horizon=5 is longer than chunk.prediction_horizon=4"):
        ChunkConfig(prediction_horizon=4, execution_horizon=5)


def test_plan_is_sample_in_numpy(make_policy, make_batch):
    policy = make_policy()
    observation, noise = make_batch(policy, 3).observation, torch.randn(3, *policy.noise_shape)
    planned = policy.plan({name: value.numpy() for name, value in observation.items()}, noise.numpy())
    assert planned.dtype == "float32"
    assert (planned == policy.sample(observation, noise).detach().numpy()).all()
    assert isinstance(policy, Planner)


def test_a_policy_is_printed_as_one_useful_line(make_policy):
    policy = make_policy()
    weights = sum(p.numel() for p in policy.parameters())
    assert str(policy) == (
        f"Policy(head=flow, net=mlp, {weights:,} parameters, state (3,) + goal (2,) -> action (2,), history 2, "
        "predicts 4, executes 2)"
    )
