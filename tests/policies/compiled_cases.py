"""What `Policy.compile` and train.compile compute; run by test_compiled.py, in a process that checks no annotations.

The checks wrap every function, and torch's tracer cannot follow all of them. By hand:

    python -m pytest -p no:logging --noconftest tests/policies/compiled_cases.py
"""

from __future__ import annotations

import copy
import gc
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from conf.cli import compose
from flowhand.commands import train
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies import Policy, PolicyConfig
from policies.compile import MATRIX_ROWS, CompiledSampler, RowLinear
from policies.encoders.state import StateEncoderConfig
from policies.generation.prefix import Prefix
from policies.heads import HEADS
from policies.nets import NETS
from policies.training import trainer as training
from tests.policies import represented

NETS_TO_TRY = {
    "mlp": {"width": 16, "blocks": 2},
    "unet1d": {"down_dims": [8, 16], "groups": 2},
    "transformer": {"width": 16, "blocks": 1, "heads": 2},
    "cross": {"kind": "transformer", "width": 16, "blocks": 1, "heads": 2, "cross_attention": True},
}
MULTISTEP = {"prediction": "preconditioned", "sigma_data": 0.8}
HEADS_TO_TRY = {name: {} for name in HEADS} | {
    "flow": {"steps": 3},
    "flow-multistep": {"kind": "flow", "steps": 4, **MULTISTEP, "solver": "multistep", "grid": "tabulated"},
    "diffusion": {"steps": 4},
    "diffusion-multistep": {
        "kind": "diffusion",
        "steps": 4,
        **MULTISTEP,
        "sampler": "multistep",
        "spacing": "tabulated",
    },
    "ddpm": {"kind": "diffusion", "sampler": "ddpm", "steps": 3},
    "edm": {"steps": 2},
}
FEATURES = {"state": Feature((3,), "float32", "m"), "goal": Feature((2,), "float32", "m")}
SPREAD = {"state": torch.tensor([1.0, 10.0, 100.0]), "goal": torch.ones(2)}
MIXED = (0, 3)  # choices of the two dimensions of an action: a velocity and one of three


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def make(net: str = "mlp", head: str = "flow", choices: tuple[int, ...] | None = None, **options: Any) -> Policy:
    """A small policy with random weights, whose actions stay near their spread as those of a trained one do."""
    nets, heads = dict(NETS_TO_TRY[net]), HEADS_TO_TRY[head] | options
    config = PolicyConfig(
        chunk=ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2),
        encoder=StateEncoderConfig(width=16),
        net=NETS[nets.pop("kind", net)][0](**nets),
        head=HEADS[heads.pop("kind", head)][0](**heads),
    )
    policy = Policy(config, Spec(FEATURES, Feature((2,), "float32", "m/s", choices=choices), control_dt_s=0.05))
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.5 * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    data = {name: torch.randn(200, f.size) * SPREAD[name] for name, f in FEATURES.items()}
    action = torch.randn(200, 2) * torch.tensor([0.1, 3.0]) + 1
    for dimension, count in enumerate(choices or ()):
        if count:
            action[:, dimension] = torch.randint(count, (200,))
    policy.fit_normalizers(data, action)
    return policy.eval()


Inputs = tuple[dict[str, Tensor], Tensor]


def inputs(policy: Policy, rows: int) -> Inputs:
    observation = {name: torch.randn(rows, 2, f.size) * SPREAD[name] for name, f in FEATURES.items()}
    return observation, torch.randn(rows, *policy.noise_shape)


@torch.no_grad()
def sample(policy: Policy, given: Inputs) -> Tensor:
    return policy.sample(*given)


def error(policy: Policy, actions: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the action's spread."""
    assert actions.shape == expected.shape
    assert actions.dtype == torch.float32
    return ((actions - expected) / policy.action_normalizer.scale).abs().max().item()


class Graphs(list[torch.fx.GraphModule]):
    """A compiler that keeps the graphs that it is given, and runs them as they are."""

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.append(graph)
        return graph.forward


def calls(graph: torch.fx.GraphModule) -> Counter[str]:
    """How often a decision calls each function, those inside the net's evaluations left out."""
    return Counter(getattr(node.target, "__name__", "") for node in graph.graph.nodes if node.op == "call_function")


def cases() -> Iterator[Any]:
    """Every head on the mlp and every net with flow; a single row goes through `RowLinear`, several do not."""
    pairs = [*(("mlp", head) for head in HEADS_TO_TRY), *((net, "flow") for net in NETS_TO_TRY if net != "mlp")]
    for net, head in pairs:
        for rows in (1, 3, 16):
            yield net, head, rows


@pytest.mark.parametrize(("net", "head", "rows"), [*cases()])
def test_the_same_actions_from_one_graph(net, head, rows):
    policy, graphs = make(net, head), Graphs()
    compiled = CompiledSampler(policy, backend=graphs)
    for _ in range(2):  # the second decision is not the first one's numbers once more
        given = inputs(policy, rows)
        assert error(policy, compiled(*given), sample(policy, given)) < 1e-5
    (graph,) = graphs
    # The net is traced once for all evaluations, but for DDPM's first one: there the chunk is a slice of the noise.
    extra = 1 if head == "ddpm" else 0
    assert len(list(graph.children())) == 1 + extra
    repeated = policy.head.evaluations - extra
    assert calls(graph)["invoke_subgraph"] == (repeated if repeated > 1 else 0)  # torch inlines what is called once


@pytest.mark.parametrize("representation", ["absolute", "delta", "relative"])
def test_the_graph_takes_the_anchor_from_the_observation(representation):
    policy, graphs = represented.make(representation), Graphs()
    compiled = CompiledSampler(policy, backend=graphs)
    for _ in range(2):
        given = represented.observations(3), torch.randn(3, *policy.noise_shape)
        torch.testing.assert_close(compiled(*given), sample(policy, given), rtol=0, atol=1e-5)
    assert len(graphs) == 1


def test_the_encoder_and_the_times_are_computed_once_for_all_steps():
    counts = []
    for steps in (2, 5):
        policy, graphs = make(steps=steps), Graphs()
        CompiledSampler(policy, backend=graphs)(*inputs(policy, 3))
        assert calls(graphs[0])["invoke_subgraph"] == steps
        counts.append(calls(graphs[0])["linear"])
    assert counts == [6, 6]  # two of the encoder, two of the time, conditioning, modulation


def test_every_batch_size_has_a_function_of_its_own_and_keeps_it():
    policy, graphs = make(head="regression"), Graphs()
    compiled = CompiledSampler(policy, backend=graphs)
    for rows, known in ((2, 1), (4, 2), (2, 2), (4, 2)):
        given = inputs(policy, rows)
        assert error(policy, compiled(*given), sample(policy, given)) < 1e-5
        assert len(graphs) == known


def test_inputs_may_lie_anyhow_in_memory_and_more_of_them_may_be_given():
    policy, graphs = make(head="regression"), Graphs()
    compiled = CompiledSampler(policy, backend=graphs)
    observation, noise = inputs(policy, 2)
    expected = compiled(observation, noise)
    strided = {name: value.transpose(1, 2).contiguous().transpose(1, 2) for name, value in observation.items()}
    backwards = dict(reversed(strided.items())) | {"camera": torch.zeros(2, 1)}
    assert not strided["state"].is_contiguous()
    assert torch.equal(compiled(backwards, noise.transpose(1, 2).contiguous().transpose(1, 2)), expected)
    assert len(graphs) == 1


def test_fp32_follows_changed_weights():
    policy, graphs = make(head="regression"), Graphs()
    compiled = CompiledSampler(policy, backend=graphs)
    for rows in (1, 3):
        given = inputs(policy, rows)
        before = compiled(*given)
        with torch.no_grad():
            policy.net.outlet.weight.mul_(2)
            policy.action_normalizer.shift.add_(1)
        assert error(policy, compiled(*given), sample(policy, given)) < 1e-5
        assert error(policy, compiled(*given), before) > 1
    assert len(graphs) == 2


def rounded(policy: Policy) -> Policy:
    """A copy whose linear layers have weights that bf16 can tell, and compute in fp32."""
    policy = copy.deepcopy(policy)
    for layer in policy.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.bfloat16().float()
    return policy


def test_bf16_rounds_the_weights_of_single_rows():
    policy = make(head="regression")
    given = inputs(policy, 1)
    actions = CompiledSampler(policy, "bf16", Graphs())(*given)
    assert error(policy, actions, sample(rounded(policy), given)) < 1e-5
    assert error(policy, actions, sample(policy, given)) > 1e-4


def test_bf16_is_fp32_where_a_cpu_gains_nothing():
    policy = make(head="regression")
    given = inputs(policy, MATRIX_ROWS - 1)
    assert error(policy, CompiledSampler(policy, "bf16", Graphs())(*given), sample(policy, given)) < 1e-5


@pytest.mark.parametrize("net", NETS_TO_TRY)
def test_bf16_of_many_rows_is_autocasting(net):
    policy, graphs = make(net, steps=2), Graphs()
    given = inputs(policy, MATRIX_ROWS)
    actions = CompiledSampler(policy, "bf16", graphs)(*given)
    with torch.autocast("cpu", torch.bfloat16):
        expected = sample(policy, given)
    assert error(policy, actions, expected) < 1e-5
    assert 1e-4 < error(policy, actions, sample(policy, given)) < 3e-2
    weights = [node.meta["example_value"] for node in graphs[0].graph.nodes if "weight" in node.name]
    assert {w.dtype for w in weights if w.ndim > 1} == {torch.bfloat16}  # rounded once, not at every use


def test_the_policy_stays_as_it_is():
    policy = make()
    state = {name: (value.clone(), value.data_ptr()) for name, value in policy.state_dict().items()}
    layers = [(name, type(module)) for name, module in policy.named_modules()]
    for precision in ("fp32", "bf16"):
        compiled = CompiledSampler(policy, precision, Graphs())
        for rows in (1, MATRIX_ROWS):
            compiled(*inputs(policy, rows))
    assert [(name, type(module)) for name, module in policy.named_modules()] == layers
    assert RowLinear not in {layer for _, layer in layers}
    assert list(policy.state_dict()) == list(state)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, state[name][0])
        assert (value.dtype, value.data_ptr()) == (torch.float32, state[name][1])
    assert all(p.requires_grad for p in policy.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, as it loads its compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize(
    ("head", "precision", "bound"), [("flow", "fp32", 1e-5), ("flow", "bf16", 3e-2), ("flow-multistep", "fp32", 1e-5)]
)
def test_compile_for_real(tmp_path, monkeypatch, head, precision, bound):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    policy = make(head=head, steps=2 if head == "flow" else 4)
    given = inputs(policy, 1)
    expected = sample(policy, given)
    plain = policy.sample(*given)
    policy.compile(precision)
    actions = policy.sample(*given)
    assert (plain.requires_grad, actions.requires_grad) == (True, False)
    assert error(policy, actions, expected) < bound
    assert torch.equal(policy.sample(*given), actions)
    assert list(tmp_path.rglob("*.cpp"))
    copied = copy.deepcopy(policy)  # is not compiled: it has its own weights
    assert torch.equal(sample(copied, given), expected)
    again = Prefix(plain.detach(), torch.tensor([1]), torch.tensor([2]), "identity")
    assert policy.sample(*given, again).requires_grad  # a chunk that continues another is not compiled


def make_trainer(*overrides: str) -> train.Trainer:
    """A trainer of a small policy with random weights, on random demonstrations."""
    random = np.random.default_rng(0)
    state, action = random.normal(size=(20, 3)), random.normal(size=(20, 2))
    nothing, never = np.zeros(20, np.float32), np.zeros(20, bool)
    episode = Episode({"state": state.astype(np.float32)}, action.astype(np.float32), nothing, never, "", 0, 0.05)
    spec = Spec({"state": FEATURES["state"]}, Feature((2,), "float32", "m/s"), control_dt_s=0.05)
    small = ("net.width=16", "encoder.width=16", "net.blocks=1", *overrides)
    trainer = train.trainer_of(compose([*small]), spec, [episode], torch.device("cpu"))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in trainer.policy.parameters():
            p.copy_(torch.randn(p.shape) / p.shape[-1] ** 0.5)
    return trainer


TRAINED = {head: [f"head={head}"] for head in HEADS}
TRAINED |= {
    f"{head}-preconditioned": [f"head={head}", "head.prediction=preconditioned", "head.time=log_normal"]
    for head in ("flow", "diffusion")
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own; it only hides it
@pytest.mark.parametrize("head", TRAINED)
def test_training_compiles_the_loss_and_its_gradient(monkeypatch, head):
    graphs, compiler = [], torch.compile

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, examples)

    torch._dynamo.reset()  # the loss of another head is the same code
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=backend))
    monkeypatch.setattr(training, "require_compiler", lambda: None)  # this backend needs none
    results = []
    for compiled in (False, True):
        trainer = make_trainer(*TRAINED[head], f"train.compile={compiled}")
        assert not graphs
        batch = trainer.windows.draw(8, torch.Generator().manual_seed(0))
        loss = trainer.loss(batch, torch.Generator().manual_seed(1), 1)
        loss.backward()
        results.append({name: p.grad for name, p in trainer.policy.named_parameters()} | {"loss": loss.detach()})
    assert graphs
    torch.testing.assert_close(results[1], results[0])
    assert results[0]["loss"] > 0.01
    assert all(value is not None for value in results[0].values())


def captured_cases() -> Iterator[Any]:
    """Every net with flow, heads with loops of their own, and a mixed action space; in both precisions."""
    heads = [(net, "flow", None) for net in NETS_TO_TRY] + [
        ("mlp", h, None) for h in ("ddpm", "edm", "mean_flow", "flow-multistep")
    ]
    for net, head, choices in [*heads, ("mlp", "flow", MIXED)]:
        marks = [] if (net, head, choices) == ("mlp", "flow", None) else pytest.mark.slow
        yield pytest.param(net, head, choices, "fp32", 1e-4, marks=marks)
        if not choices:  # a rounded score may choose otherwise
            bound = 0.3 if head == "edm" else 3e-2  # its noise of 20 enlarges what is rounded
            yield pytest.param(net, head, choices, "bf16", bound, marks=marks)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, as it loads its compiler
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # which would round fp32
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize(("net", "head", "choices", "precision", "bound"), [*captured_cases()])
def test_a_captured_graph(net, head, choices, precision, bound, rows):
    policy = make(net, head, choices).cuda()
    compiled = CompiledSampler(policy, precision)
    kept, litter = [], []
    for _ in range(3):
        observation, noise = inputs(policy, rows)
        given = {name: value.cuda() for name, value in observation.items()}, noise.cuda()
        kept.append((compiled(*given), sample(policy, given)))
        gc.collect()  # what the graph reads and nobody holds would be freed here, and written to by what follows
        litter += [torch.full((128 << k,), torch.nan, device="cuda") for k in range(12) for _ in range(50)]
    for actions, expected in kept:  # none was overwritten by a later decision
        assert error(policy, actions, expected) < bound
