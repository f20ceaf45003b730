"""Start from a checkpoint: new features leave the function as it is, what differs is said, misfits are refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

import policies
from conf.cli import compose
from flowhand.commands import train
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store
from policies.training.start import start

TINY = ("net.width=16", "encoder.width=16", "net.blocks=1", "train.batch_size=32", "train.threads=1", "train.steps=12")
ALONE = (*TINY, "env=none", "eval.episodes=0", "wandb.mode=disabled", "chunk.prediction_horizon=4", "data.held_out=0")
STATE, FORCE = Feature((3,), "float32", "rad"), Feature((2,), "float32", "N")
ACTION = Feature((2,), "float32", "rad")
NARROW, WIDE = ({"state": STATE}, {"force": FORCE, "state": STATE, "touch": FORCE})


def store_of(path, features, shift=0.0, spread=1.0, action=ACTION):
    spec = Spec(features, action, 0.1)
    store = Store.create(path, StoreMeta(spec.to_dict(), "push", "by hand", "", {}))
    for seed in range(3):
        random = np.random.default_rng(seed)
        drawn = {
            n: (shift + spread * random.normal(size=(20, *f.shape))).astype(np.float32) for n, f in features.items()
        }
        rest = (np.zeros(20, np.float32), np.zeros(20, bool), "push", seed + int(shift), 0.1)
        store.append(Episode(drawn, (spread * random.normal(size=(20, action.size))).astype(np.float32), *rest))
    return path


def run(path, out, *words):
    return train.train(compose([*ALONE, f"data.path={path}", f"out={out}", *words]), [], None)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    assert run(store_of(folder / "data", NARROW), folder / "run") == 0
    return folder / "run"


def policy_of(features, *words):
    config = compose([*ALONE, *words])
    torch.manual_seed(1)
    policy = policies.Policy(config.policy, Spec(features, ACTION, 0.1))
    random = torch.Generator().manual_seed(2)
    data = {name: 5 + 3 * torch.randn(50, f.size, generator=random) for name, f in features.items()}
    policy.fit_normalizers(data, torch.randn(50, 2, generator=random))
    return policy.eval()


@pytest.mark.parametrize("features", [NARROW, WIDE])
def test_with_kept_statistics_the_function_is_unchanged(begun, features):
    old, new = policies.load(begun), policy_of(features)
    start(new, old, "keep")
    seen = {name: 2 * torch.randn(6, 2, f.size) for name, f in features.items()}
    drawn = torch.randn(6, *old.noise_shape)
    with torch.no_grad():
        expected = old.sample({"state": seen["state"]}, drawn)
        torch.testing.assert_close(new.sample(seen, drawn), expected, rtol=1e-5, atol=1e-6)


def test_new_features_are_learned_from():
    new, old = policy_of(WIDE), policy_of(NARROW)
    start(new, old, "keep")
    weight = next(value for name, value in new.named_parameters() if name == "encoder.layers.0.weight")
    assert (weight[:, :4] == 0).all()  # force, with a history of two, comes first
    assert (weight[:, -4:] == 0).all()
    for layer in (new.net.modulation, new.net.outlet):  # a fresh net has zeros there, which no gradient passes
        torch.nn.init.normal_(layer.weight)
    seen = {name: torch.randn(4, 2, feature.size) for name, feature in WIDE.items()}
    batch = policies.Batch(seen, torch.randn(4, 4, 2), torch.ones(4, 4).bool())
    new.loss(batch, torch.Generator().manual_seed(0)).backward()
    assert weight.grad is not None
    assert (weight.grad[:, :4] != 0).any()


def test_statistics_are_kept_or_recomputed_and_the_table_says_what_differs():
    new, old = policy_of(WIDE), policy_of(NARROW)
    before = dict(old.normalizers())["state"]
    before.shift.fill_(1.0)
    before.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    fitted = {name: (n.shift.clone(), n.scale.clone()) for name, n in new.normalizers()}
    shift, scale = fitted["state"]
    moved, ratio = ((shift - 1) / torch.tensor([1.0, 2.0, 3.0])).abs().max(), scale / torch.tensor([1.0, 2.0, 3.0])
    lines = start(new, old, "keep")
    row = next(line.split() for line in lines if line.split()[0] == "state")
    assert row[1:] == ["3", f"{moved:.3g}", "scales", f"{ratio.min():.3g}", "to", f"{ratio.max():.3g}"]
    assert any(line.split() == ["force", "2", "new", "feature"] for line in lines)
    kept = dict(new.normalizers())
    assert kept["state"].shift.tolist() == [1, 1, 1]
    assert torch.equal(kept["force"].shift, fitted["force"][0])
    again = policy_of(WIDE)
    start(again, old, "recompute")
    for name, normalizer in again.normalizers():
        assert torch.equal(normalizer.shift, fitted[name][0]), name


def test_a_run_says_where_it_started_and_resumes_without_it(begun, tmp_path, capsys):
    data, started = store_of(tmp_path / "data", WIDE, shift=3.0, spread=2.0), tmp_path / "begun"
    shutil.copytree(begun, started)
    words = (f"init={started}", f"data.path={data}", "train.save_every=6", "env=none", *ALONE)
    config = compose([*words, f"out={tmp_path}/run"])
    assert train.train(config, list(words), None) == 0
    said = capsys.readouterr().out
    assert f"starts from {started}, trained for 12 steps" in said
    assert "statistics (init_statistics=keep): the checkpoint's are kept" in said
    written = json.loads((tmp_path / "run/checkpoint/config.json").read_text())["provenance"]
    (about,) = written["started_from"]
    assert about["weights"] == hashlib.sha256((begun / "checkpoint/model.safetensors").read_bytes()).hexdigest()
    assert about["train_steps"] == 12
    assert about["recorded"][0]["name"] == "data"
    assert about["demonstrations"] == Store.open(begun.parent / "data").hash()
    assert written["demonstration_seeds"] == [0, 1, 2, 3, 4, 5]  # an evaluation must use none of either
    expected = policies.load(tmp_path / "run").state_dict()

    half = compose([*words, f"out={tmp_path}/half"])
    stop_after(6, half, list(words))
    shutil.rmtree(started)
    state = policies.load_train_state(tmp_path / "half/checkpoint")
    resumed = compose([*words, f"out={tmp_path}/half", f"resume={tmp_path}/half"])
    assert train.train(resumed, list(words), state) == 0
    for name, value in policies.load(tmp_path / "half").state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert json.loads((tmp_path / "half/checkpoint/config.json").read_text())["provenance"]["started_from"] == [about]


def stop_after(steps, config, overrides):
    """A training that is interrupted after so many steps."""
    advance = train.Trainer.advance

    def stopping(self):
        if self.step == steps:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, overrides, None)


@pytest.mark.parametrize(
    ("words", "features", "message"),
    [
        (["net.width=32"], NARROW, "has net.width=16, and here it is 32; a start needs the same"),
        ([], {"force": FORCE}, "has the observation 'state', and the data have not"),
        ([], {"state": FORCE}, r"has the observation 'state' float32 \(3,\), and the data float32 \(2,\)"),
        (["net=transformer", "net.width=32"], WIDE, "has net.kind=mlp, and here it is transformer"),
    ],
)
def test_what_cannot_start_is_refused_in_a_line(begun, words, features, message):
    new = policy_of(features, *(word for word in words))
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=message) as told:
        start(new, policies.load(begun), "keep")
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())


def test_a_net_that_attends_takes_no_new_feature():
    words = ("net=transformer", "net.width=32", "net.cross_attention=true")
    base = ("env=none", "eval.episodes=0", "encoder.width=16", "chunk.prediction_horizon=4")
    made = [policies.Policy(compose([*base, *words]).policy, Spec(f, ACTION, 0.1)) for f in (WIDE, NARROW)]
    with pytest.raises(ValueError, match="net=transformer attends to each feature, so init cannot add force, touch"):
        start(made[0], made[1], "keep")


def test_another_action_or_choice_is_refused(begun, tmp_path):
    other = store_of(tmp_path / "data", NARROW, action=Feature((3,), "float32", ""))
    with pytest.raises(ValueError, match=r"has the action float32 \(2,\), and the data float32 \(3,\)"):
        run(other, tmp_path / "run", f"init={begun}")
    with pytest.raises(ValueError, match="init_statistics='some' is unknown; choices: keep, recompute"):
        compose(["init_statistics=some"])
    with pytest.raises(ValueError, match="there is no checkpoint directory at"):
        run(other, tmp_path / "run", f"init={tmp_path}/none")
