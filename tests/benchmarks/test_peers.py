"""The comparison with other systems, with a small program in place of the peer."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import peers, peers_sides, peers_speed
from benchmarks.peers_lerobot import ENVIRONMENT, STATE, split, windows
from benchmarks.peers_process import Peer, PeerError, PeerPlanner
from conf.cli import compose
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import ChunkConfig, Spec
from flowhand.contracts.planner import NOTHING
from flowhand.control.controller import Controller

PROGRAM = """
import json, sys
print("not for you", file=sys.stderr)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    q = json.loads(line)
    if q["do"] == "die":
        print("a last word", file=sys.stderr, flush=True)
        sys.exit(7)
    if q["do"] == "fail":
        print(json.dumps({"error": "Traceback: too hot"}), flush=True)
    if q["do"] == "echo":
        print(json.dumps({"echo": q}), flush=True)
    if q["do"] == "decide":  # the newest position, and the noise without its first step
        rows = zip(q["observation"]["position"], q["noise"])
        print(json.dumps({"actions": [[[p[-1][0] + n for n in step] for step in x[1:]] for p, x in rows]}), flush=True)
"""


@pytest.fixture
def peer(tmp_path):
    with Peer([sys.executable, "-c", PROGRAM], tmp_path / "logs" / "peer.log") as running:
        yield running


def test_a_question_has_its_answer(peer, tmp_path):
    assert peer.hello == {"ready": True}
    assert peer.ask("echo", a=[1, 2]) == {"echo": {"do": "echo", "a": [1, 2]}}
    assert peer.ask("echo", b="x") == {"echo": {"do": "echo", "b": "x"}}
    assert "not for you" in (tmp_path / "logs" / "peer.log").read_text()


def test_an_error_over_there_is_one_here_and_the_peer_lives_on(peer):
    with pytest.raises(PeerError, match="too hot"):
        peer.ask("fail")
    assert peer.ask("echo")["echo"] == {"do": "echo"}


def test_a_peer_that_dies_says_how(peer):
    with pytest.raises(PeerError, match=r"status 7; .*peer\.log ends: [\s\S]*a last word"):
        peer.ask("die")
    with pytest.raises(PeerError, match="status 7"):
        peer.ask("echo")


def test_a_peer_that_does_not_come_up_leaves_no_process(tmp_path):
    with pytest.raises(PeerError, match=r"status 1; .*no such place"):
        Peer([sys.executable, "-c", "raise SystemExit('no such place')"], tmp_path / "peer.log")


def test_the_program_ends_with_the_block(tmp_path):
    with Peer([sys.executable, "-c", PROGRAM], tmp_path / "peer.log") as running:
        assert running.process.poll() is None
    assert running.process.returncode == 0


def spec(position: int, action: int) -> Spec:
    vector = {"dtype": "float32", "unit": "", "low": None, "high": None}
    observation = {"position": {"shape": [position], **vector}}
    return Spec.from_dict({"observation": observation, "action": {"shape": [action], **vector}, "control_dt_s": 0.1})


def test_the_controller_runs_a_peer_to_the_last_bit(peer):
    class Local:
        """What the program computes, here."""

        spec, chunk, noise_shape, continues = spec(2, 3), ChunkConfig(2, 4, 1), (5, 3), NOTHING

        def plan(self, observation, noise, prefix=None):
            return (observation["position"][:, -1, :1, None].astype(np.float64) + noise[:, 1:]).astype(np.float32)

    there = Controller(PeerPlanner(peer, Local.spec, Local.chunk, Local.noise_shape), 3, inference_batch=4)
    here = Controller(Local(), 3, inference_batch=4)
    random = np.random.default_rng(0)
    for controller in (there, here):
        for lane in range(3):
            controller.reset(lane, seed=10 + lane)
    for _ in range(4):  # so that every lane decides twice
        seen = {lane: {"position": random.standard_normal(2).astype(np.float32)} for lane in range(3)}
        mine, its = here.act(seen), there.act(seen)
        for lane in range(3):
            assert its[lane].dtype == np.float32
            np.testing.assert_array_equal(its[lane], mine[lane])


@pytest.mark.parametrize(("history", "horizon", "dropped"), [(2, 4, 1), (1, 3, 0), (3, 8, 2)])
def test_windows_are_those_of_the_dataset_of_lerobot(history, horizon, dropped):
    """Against a loop over delta indices, clamped to the episode, with flags where that moved them."""
    lengths = [5, 3]
    seen, done, padded = windows(torch.tensor(lengths), history, horizon, dropped)
    expected = []
    for episode, start in ((5, 0), (3, 5)):
        for step in range(episode - dropped):
            past = [step + d for d in range(1 - history, 1)]
            ahead = [step + d for d in range(1 - history, 1 - history + horizon)]
            clamp = [[start + min(max(i, 0), episode - 1) for i in indices] for indices in (past, ahead)]
            expected.append((*clamp, [not 0 <= i < episode for i in ahead]))
    for got, wanted in zip((seen, done, padded), zip(*expected, strict=True), strict=True):
        assert got.tolist() == list(wanted)


def test_the_first_vector_is_the_state_and_the_others_the_environment():
    observation = {"b": np.ones((2, 1, 3)), "a": np.zeros((2, 1, 2)), "c": 5 * np.ones((2, 1, 1))}
    parts = split(observation, ["a", "b", "c"])
    assert parts[STATE].tolist() == np.zeros((2, 1, 2)).tolist()
    assert parts[ENVIRONMENT].tolist() == [[[1, 1, 1, 5]], [[1, 1, 1, 5]]]
    assert parts[STATE].dtype == torch.float32
    alone = split(observation, ["b"])
    assert torch.equal(alone[STATE], alone[ENVIRONMENT])


def test_the_demonstrations_arrive_whole(tmp_path):
    def episode(length, offset):
        rise = np.arange(length, dtype=np.float32)[:, None] + offset
        return Episode({"x": rise}, -rise, np.zeros(length, np.float32), np.zeros(length, bool), "", offset, 0.1)

    peers_sides.export([episode(2, 0), episode(3, 10)], tmp_path / "new" / "demos.npz")
    with np.load(tmp_path / "new" / "demos.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["action", "lengths", "observation/x"]
        assert arrays["observation/x"].ravel().tolist() == [0, 1, 10, 11, 12]
        assert arrays["action"].ravel().tolist() == [0, -1, -10, -11, -12]
        assert arrays["lengths"].tolist() == [2, 3]


def test_speed_is_compared_round_by_round():
    """The second round is ten times slower for both; the ratio must not mix the rounds."""
    lerobot, ours = [[40.0, 42.0, 41.0], [400.0, 420.0, 410.0]], [[2.0, 2.05, 2.1], [20.0, 20.5, 21.0]]
    line = peers_speed.row("ours", ours, lerobot, rate=False)
    assert line["times_as_fast"] == pytest.approx(20)
    assert line["n"] == 6
    assert line["median"] == pytest.approx(11.05)
    assert peers_speed.row("ours", [[200.0], [30.0]], [[100.0], [10.0]], rate=True)["range"] == [2.0, 3.0]


def test_everyone_takes_a_turn_in_every_round():
    calls = []
    told = peers_speed.in_turns({name: lambda name=name: calls.append(name) or [len(calls)] for name in "ab"}, rounds=2)
    assert calls == ["a", "b", "a", "b"]
    assert told == {"a": [[1], [3]], "b": [[2], [4]]}


def test_the_schedule_ends_within_the_time():
    assert peers.fitting(rate=10.0, seconds=60.0) == 588
    assert peers.fitting(rate=0.1, seconds=1.0) == 1
    config = compose([])
    assert peers_sides.replace_steps(config, 300).train.warmup_steps == 30
    assert peers_sides.replace_steps(config, 5000).train.warmup_steps == config.train.warmup_steps
    assert config.train.steps == 2000


@pytest.mark.slow
@pytest.mark.parametrize("arm", [*peers.ARMS, *peers_speed.TRAINED, *peers_speed.DECIDING])
def test_our_arms_are_valid_and_have_the_shapes_of_the_peer(arm):
    tables = {
        **{name: overrides for name, (overrides, _) in peers.ARMS.items()},
        **peers_speed.TRAINED,
        **peers_speed.DECIDING,
    }
    config = compose(tables[arm])
    assert (config.chunk.history, config.chunk.prediction_horizon) == (2, 16)
    if "unet" in arm:
        assert config.train.batch_size == peers_sides.BATCH
        assert list(getattr(config.net, "down_dims")) == peers_sides.DIMS  # noqa: B009


def test_the_summary_adds_intervals_and_bars(tmp_path):
    rows = [{"name": "flow-mlp-10-compiled", "times_as_fast": 21.0}, {"name": "flow-mlp-10", "times_as_fast": 9.0}]
    speeds = {"kind": "decisions", "device": "cpu", "rows": rows}
    success = {"kind": "success", "device": "cpu", "results": {"8": {"n": 4, "outcomes": "1101"}}}
    for name, cell in (("a", speeds), ("b", success), ("c", {**speeds, "device": "cuda"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(cell))
    told = peers.summarize(tmp_path, "cpu")
    assert [cell["device"] for cell in told["cells"]] == ["cpu", "cpu"]  # of one device, as the file's name says
    result = told["cells"][1]["results"]["8"]
    assert result["successes"] == 3
    assert result["wilson"] == pytest.approx((0.3006, 0.9544), abs=1e-3)  # Wilson 1927, by hand
    (bar,) = told["bars"]
    assert (bar["name"], bar["bar"], bar["measured"], bar["met"]) == ("flow-mlp-10-compiled", 20.0, 21.0, True)


def test_every_bar_is_about_something_that_is_measured():
    timed = {**peers_speed.DECIDING, **peers_speed.TRAINED}
    exported = {f"{n}-onnx-{p}" for n in peers_speed.EXPORTED for p in peers_speed.PRECISIONS_EXPORTED}
    names = {name for _, _, name, _ in peers_speed.BARS} - exported
    assert {name.removesuffix("-bf16").removesuffix("-compiled") for name in names} <= set(timed)
    assert set(peers_speed.EXPORTED) <= set(peers_speed.DECIDING)
