import pytest
import torch
from torch import nn

from policies import EMA


def averaged(values: list[float], decay: float) -> tuple[EMA, nn.Linear]:
    """An average that has followed one weight through the values, starting at the first."""
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(values[0])
    ema = EMA(module, decay)
    for value in values[1:]:
        module.weight.data.fill_(value)
        ema.update()
    return ema, module


def weight(ema: EMA) -> float:
    return next(ema.module.parameters()).item()


def test_the_warm_up_average_is_the_closed_form():
    """Update n keeps (1 + n) / (10 + n) of the average: a value seen at update n weighs 9 / (10 + n) of the rest."""
    values = torch.randn(41).tolist()
    expected = values[0]
    for n, value in enumerate(values[1:], start=1):
        expected = expected * (1 + n) / (10 + n) + value * 9 / (10 + n)
    assert weight(averaged(values, decay=0.9999)[0]) == pytest.approx(expected, abs=1e-5)


def test_the_start_is_forgotten_at_the_stated_rate():
    """The product of (1 + n) / (10 + n) for n = 1..N telescopes to 10! / ((N + 2) ... (N + 10))."""
    n, share = 20, 1.0
    for k in range(2, 11):
        share *= k / (n + k)
    assert weight(averaged([1.0] + [0.0] * n, decay=0.9999)[0]) == pytest.approx(share, rel=1e-4)


def test_the_warm_up_stops_at_the_decay():
    """0.5 is passed at n = 8: (1 + 8) / (10 + 8)."""
    share = 1.0
    for n in range(1, 8):
        share *= (1 + n) / (10 + n)
    share *= 0.5**5
    assert weight(averaged([1.0] + [0.0] * 12, decay=0.5)[0]) == pytest.approx(share, rel=1e-4)


def test_a_decay_of_zero_follows_at_once():
    assert weight(averaged([1.0, 3.0, 8.0], decay=0.0)[0]) == 8.0


def test_updates_are_counted_and_the_counter_decides_the_decay():
    ema, module = averaged([0.0] * 6, decay=0.9999)
    assert ema.updates == 5
    ema.updates = 89  # as a resumed run sets it
    module.weight.data.fill_(1.0)
    ema.update()
    assert ema.updates == 90
    assert weight(ema) == pytest.approx(9 / 100)


def test_the_copy_is_frozen_and_apart_from_the_original():
    ema, module = averaged([1.0], decay=0.99)
    module.weight.data.fill_(5.0)
    assert weight(ema) == 1.0
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert module.training
    assert all(p.requires_grad for p in module.parameters())


def test_a_restored_average_goes_on_like_the_first(make_policy):
    policy = make_policy()
    ema = EMA(policy, 0.999)
    for _ in range(3):
        ema.update()
    other = EMA(make_policy(), 0.999)
    other.module.load_state_dict(ema.module.state_dict())
    other.updates = ema.updates
    assert other.updates == 3
    for name, value in ema.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])


def test_statistics_are_kept_and_not_averaged(make_policy, make_batch):
    policy = make_policy()
    ema = EMA(policy, 0.9)
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    policy.loss(make_batch(policy)).backward()
    optimizer.step()
    ema.update()
    average, current = ema.module.state_dict(), policy.state_dict()
    buffers = [name for name, _ in policy.named_buffers() if name in current]
    assert len(buffers) == 6  # shift and scale of state, goal, action
    for name in buffers:
        assert torch.equal(average[name], current[name])
    assert any(not torch.equal(average[name], current[name]) for name, _ in policy.named_parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_an_error(decay):
    with pytest.raises(ValueError, match=r"EMA decay is .*, expected a number in \[0, 1\)"):
        EMA(nn.Linear(1, 1), decay)


def test_buffers_are_averaged_and_integers_are_copied():
    module = nn.BatchNorm1d(2)
    module.register_buffer("constant", torch.tensor([7.0]), persistent=False)
    ema = EMA(module, decay=0.5)
    ema.updates = 100  # the decay has warmed up
    module(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    mean = module.get_buffer("running_mean")
    assert mean.abs().min() > 0
    ema.update()
    torch.testing.assert_close(ema.module.get_buffer("running_mean"), mean / 2)
    assert ema.module.get_buffer("num_batches_tracked") == 1
    assert ema.module.get_buffer("constant") == 7
