import pytest
import torch

from policies.conditioning import Conditioning
from policies.nets import NETS
from tests.cases import some

COND = 5
SIZES = [(5, 3, 2), (2, 5, 3), (4, 4, 4), (3, 3, 2), (2, 5, 5), (1, 1, 1)]  # B, T, A; some of them coincide
SHARED = [(kind, *size) for kind in NETS for size in SIZES]


@pytest.fixture
def make_net(tiny, randomize):
    def make(kind: str, horizon: int, action: int, random_weights: bool = True, **options):
        net = NETS[kind][1](tiny(NETS, kind, **options), (horizon, action), COND)
        if random_weights:
            randomize(net)
        return net

    return make


def inputs(rows: int, horizon: int, action: int):
    return torch.randn(rows, horizon, action), torch.rand(rows), torch.randn(rows, COND)


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
def test_a_net_starts_at_zero(make_net, kind, rows, horizon, action):
    net = make_net(kind, horizon, action, random_weights=False)
    x, t, cond = inputs(rows, horizon, action)
    output = net(x, net.prepare(t, Conditioning(cond)))
    assert output.shape == x.shape
    assert (output == 0).all()


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
def test_each_row_sees_itself_alone(make_net, kind, rows, horizon, action):
    """Permuting the rows permutes the output, at coinciding sizes too: nothing broadcasts along the wrong one."""
    net = make_net(kind, horizon, action)
    x, t, cond = inputs(rows, horizon, action)
    output = net(x, net.prepare(t, Conditioning(cond)))
    assert output.shape == x.shape
    order = torch.arange(rows).roll(1)
    torch.testing.assert_close(net(x[order], net.prepare(t[order], Conditioning(cond[order]))), output[order])
    for i in range(rows):
        alone = net(x[i : i + 1], net.prepare(t[i : i + 1], Conditioning(cond[i : i + 1])))
        torch.testing.assert_close(alone, output[i : i + 1])


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
@pytest.mark.parametrize("changed", ["x", "t", "cond"])
def test_a_row_depends_on_its_chunk_its_time_and_its_conditioning(make_net, kind, rows, horizon, action, changed):
    net = make_net(kind, horizon, action)
    x, t, cond = inputs(rows, horizon, action)
    before = net(x, net.prepare(t, Conditioning(cond)))
    {"x": x, "t": t, "cond": cond}[changed][0] += 0.5
    after = net(x, net.prepare(t, Conditioning(cond)))
    difference = (after - before).abs().flatten(1).amax(dim=1)
    assert difference[0] > 1e-3
    assert (difference[1:] < 1e-6).all()


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
@pytest.mark.parametrize("steps", some([1, 3, 4], [1, 4]))
def test_preparing_all_steps_at_once_is_preparing_them_one_by_one(make_net, kind, rows, horizon, action, steps):
    net = make_net(kind, horizon, action)
    x, _, cond = inputs(rows, horizon, action)
    t = torch.rand(steps, rows)
    prepared = net.prepare(t, Conditioning(cond))
    nested = net.prepare(t[None], Conditioning(cond))
    for k in range(steps):
        expected = net(x, net.prepare(t[k], Conditioning(cond)))
        torch.testing.assert_close(net(x, prepared[k]), expected)
        torch.testing.assert_close(net(x, nested[0, k]), expected)


@pytest.mark.parametrize(("horizon", "action"), [(3, 2), (4, 4)])
@pytest.mark.parametrize("kind", NETS)
def test_every_step_of_the_chunk_sees_every_other_and_knows_its_place(make_net, kind, horizon, action):
    net = make_net(kind, horizon, action)
    x, t, cond = inputs(1, horizon, action)
    modulation = net.prepare(t, Conditioning(cond))
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, modulation), x)
    assert isinstance(jacobian, torch.Tensor)
    assert (jacobian[0, :, :, 0].abs().amax(dim=(1, 3)) > 0).all()
    constant = net(torch.ones_like(x), modulation)[0]
    assert all((constant[i] - constant[0]).abs().max() > 1e-3 for i in range(1, horizon))


@pytest.mark.parametrize("kind", NETS)
def test_gradients_reach_every_weight(make_net, kind):
    net = make_net(kind, 4, 3)
    x, t, cond = inputs(6, 4, 3)
    net(x, net.prepare(t, Conditioning(cond))).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


@pytest.mark.parametrize("kind", NETS)
def test_a_net_at_zero_learns(make_net, kind):
    net = make_net(kind, 4, 3, random_weights=False)
    x, t, cond = inputs(6, 4, 3)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (net(x, net.prepare(t, Conditioning(cond))) - x.flip(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("field", ["width", "blocks", "expansion"])
def test_a_size_below_one_is_an_error(tiny, kind, field):
    with pytest.raises(ValueError, match=rf"net.{field}=0 must lie in 1..65536"):
        tiny(NETS, kind, **{field: 0})


def test_the_width_of_a_transformer_must_divide_among_its_heads(tiny):
    with pytest.raises(ValueError, match=r"net.width=16 must be a multiple of net.heads=3"):
        tiny(NETS, "transformer", heads=3)
