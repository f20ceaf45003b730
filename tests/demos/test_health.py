"""Faults that are put into good data are found where they are, and good data are left in peace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.verbs.inspect import InspectRoot
from flowhand.commands.inspect import looked_at, opened
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.formats import open_dataset
from flowhand.demos.health.dimensions import SPIKE
from flowhand.demos.health.examine import examine
from flowhand.demos.health.finding import Finding, Health
from flowhand.demos.health.rows import KEPT, Extreme, Largest, RowMeasures
from flowhand.demos.health.stored import difference
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store
from flowhand.pages.data import render
from tests import programs
from tests.demos.recorded import FPS, Set2

STATE = Feature((3,), "float64", "rad", names=("a", "b", "c"))
ACTION = Feature((2,), "float64", "rad", low=(-9.0, -9.0), high=(9.0, 9.0), names=("left", "right"))
SPEC = Spec({"state": STATE}, ACTION, 0.1)


def smooth(seed: int, steps: int, size: int) -> np.ndarray:
    """Motion of a few slow waves, other in each episode."""
    random, t = np.random.default_rng(seed), np.arange(steps)[:, None]
    waves = [random.normal(size=size) * np.sin(t * random.uniform(0.02, 0.12, size) + random.uniform(0, 6, size))
             for _ in range(4)]  # fmt: skip
    return np.sum(waves, axis=0)


def good(count: int = 12, spec: Spec = SPEC) -> list[Episode]:
    found = []
    for seed in range(count):
        steps = 90 + 5 * (seed % 5)
        state, action = smooth(seed, steps, 3), smooth(100 + seed, steps, 2)
        zeros = np.zeros(steps, np.float32)
        found.append(Episode({"state": state}, action, zeros, zeros > 0, "wave", seed, spec.control_dt_s))
    return found


def stored(path: Path, episodes: list[Episode], spec: Spec = SPEC) -> Store:
    store = Store.create(path / "store", StoreMeta(spec.to_dict(), "", "toy", "", {}))
    for episode in episodes:
        store.append(episode)
    return store


def found(health: Health, check: str) -> Finding:
    """The one finding of this check."""
    same = [each for each in health.findings if each.check == check]
    assert len(same) == 1, [each.line() for each in health.findings]
    return same[0]


def test_good_data_are_left_in_peace(tmp_path):
    health = examine(stored(tmp_path, good()))
    assert [each.line() for each in health.findings] == []
    assert health.line() == "0 errors, 0 warnings, 0 notes; 12 of 12 episodes read"
    rows = np.concatenate([np.concatenate([e.observation["state"], e.action], 1) for e in good()])
    for name, expected in (("low", rows.min(0)), ("high", rows.max(0)), ("mean", rows.mean(0)), ("std", rows.std(0))):
        np.testing.assert_allclose(getattr(health, name), expected, rtol=1e-9, atol=1e-12)
    assert health.labels == ["state.a", "state.b", "state.c", "action.left", "action.right"]


def spike(episodes):
    episodes[4].observation["state"][33, 1] += 40


def jump(episodes):
    for values in (episodes[3].observation["state"], episodes[3].action):
        values[50:] += 30


def clip(episodes):
    for episode in episodes:
        np.clip(episode.action[:, 1], -0.8, 9, out=episode.action[:, 1])


def noise(episodes):
    for seed, episode in enumerate(episodes):
        episode.action[:, 0] += np.random.default_rng(seed).normal(size=len(episode))


def outside(episodes):
    episodes[2].action[17:20, 1] = 9.5


def constant(episodes):
    for episode in episodes:
        episode.observation["state"][:, 2] = 1.5


def copy(episodes):
    episodes[7].observation, episodes[7].action = dict(episodes[2].observation), episodes[2].action
    episodes[7].reward, episodes[7].success = episodes[2].reward, episodes[2].success


def near(episodes):
    copy(episodes)
    episodes[7].action = episodes[7].action + np.random.default_rng(0).normal(size=episodes[7].action.shape) * 1e-3


def short(episodes):
    episodes[5] = episodes[5].steps(0, 15)


def long(episodes):
    parts = [smooth(5, 600, 3), smooth(105, 600, 2), np.zeros(600, np.float32)]
    episodes[5] = Episode({"state": parts[0]}, parts[1], parts[2], parts[2] > 0, "wave", 5, 0.1)


def same_start(episodes):
    for episode in episodes:
        state = episode.observation["state"]
        state += (1 - state[0]) * np.exp(-np.arange(len(state)) / 15)[:, None]


def other_start(episodes):
    for seed, episode in enumerate(episodes):
        state = episode.observation["state"]
        start = np.random.default_rng(seed).normal(size=3) * 0.05 + (np.array([0, 5, 0]) if seed == 8 else 0)
        state += (start - state[0]) * np.exp(-np.arange(len(state)) / 15)[:, None]


def wordless(episodes):
    episodes[9].task = " "


def turning(episodes):
    for episode in episodes:
        angle = np.cumsum(np.full(len(episode), 0.2))
        episode.observation["state"][:, 0] = (angle + np.pi) % (2 * np.pi) - np.pi


@pytest.mark.parametrize(
    ("spoil", "check", "severity", "episode", "step", "dimension", "part"),
    [
        (spike, "spike", "warning", 4, 33, "state.b", "1 single values stick out"),
        (jump, "joined", "warning", 3, 50, "", "most dimensions jump at once in 1 steps"),
        (clip, "clipped", "warning", None, None, "action.right", "of the rows are at -0.8 exactly"),
        (noise, "jerky", "warning", None, None, "action.left", "steps change like noise"),
        (outside, "out of range", "warning", 2, 17, "action.right", "3 rows are outside -9 to 9"),
        (constant, "constant", "note", None, None, "", "1 of 3 dimensions of the states never change: state.c"),
        (copy, "duplicates", "warning", 7, None, "", "1 episodes are others again, to the last bit: 7 as 2"),
        (near, "near-identical", "warning", 7, None, "", "1 episodes are nearly others again"),
        (short, "length", "warning", 5, None, "", "1 episodes are shorter than a quarter"),
        (long, "length", "warning", 5, None, "", "1 episodes are longer than four times"),
        (same_start, "start", "warning", None, None, "", "every episode starts in the same state"),
        (other_start, "start", "note", 8, 0, "state.b", "1 episodes start elsewhere (8)"),
        (wordless, "text", "warning", 9, None, "", "1 of 12 episodes have no text: 9"),
        (turning, "wraps", "note", None, None, "state.a", "an angle that wraps"),
    ],
)
def test_a_fault_is_found_where_it_is(tmp_path, spoil, check, severity, episode, step, dimension, part):
    episodes = good()
    spoil(episodes)
    health = examine(stored(tmp_path, episodes))
    fault = found(health, check)
    assert (fault.severity, fault.dimension) == (severity, dimension)
    assert part in fault.text
    assert fault.advice
    if episode is not None:
        assert (fault.episode, fault.step) == (episode, step)
    others = [each.line() for each in health.findings if each.check != check and each.severity != "note"]
    assert not others or spoil in (jump, outside)


def test_a_switch_and_a_rest_are_no_faults(tmp_path):
    episodes = good()
    for seed, episode in enumerate(episodes):
        episode.action[:, 0] = np.where(np.arange(len(episode)) > 20 + seed, 1.0, -1.0)  # a gripper
        eased = np.clip(np.arange(len(episode)) / 40, 0, 1)
        episode.action[:, 1] = 3 * eased**2 * (3 - 2 * eased) + 0.001 * seed  # comes to rest, and stays
    health = examine(stored(tmp_path, episodes))
    assert [each.line() for each in health.findings if each.severity != "note"] == []


def test_a_rotation_that_becomes_its_negative(tmp_path):
    spec = Spec({"rotation": Feature((4,), "float64", "")}, ACTION, 0.1)
    episodes = good()
    for episode in episodes:
        half = 0.02 * np.arange(len(episode))
        values = np.stack([np.cos(half), np.sin(half), 0 * half, 0 * half], 1)
        episode.observation = {"rotation": values}
    episodes[6].observation["rotation"][30:] *= -1
    fault = found(examine(stored(tmp_path, episodes, spec)), "wraps")
    assert (fault.episode, fault.step, fault.dimension) == (6, 30, "rotation[0]")
    assert "becomes its negative 1 times" in fault.text


def test_numbers_that_are_none_and_files_that_are_damaged(tmp_path):
    made = Set2(tmp_path / "two", lengths=(40, 40, 40, 40))
    made.rows[1]["observation.state"][7, 2] = np.nan
    made.write()
    made.data(3).write_bytes(b"PAR1")
    health = examine(open_dataset(made.path))
    errors = [each for each in health.findings if each.severity == "error"]
    assert [each.episode for each in errors] == [1, 3]
    assert "nan at row 7, dimension [2]" in errors[0].text
    assert health.read == 2


def test_times_that_drift_or_have_gaps(tmp_path):
    made = Set2(tmp_path / "two", lengths=(60, 60, 60, 60))
    count = np.arange(60)
    made.rows[0]["timestamp"] = ((count + 3 * (count >= 20)) / FPS).astype(np.float32)
    made.rows[1]["timestamp"] = (count / (0.9 * FPS)).astype(np.float32)
    jitter = np.where(count % 2, 0.4, 0) + count
    made.rows[2]["timestamp"] = (jitter / FPS).astype(np.float32)
    health = examine(open_dataset(made.write()))
    gap, rate = found(health, "gaps"), found(health, "rate")
    assert (gap.episode, gap.step) == (0, 20)
    assert gap.text.startswith("3 rows are missing in 1 gaps of 1 episodes")
    assert rate.episode == 1
    assert rate.text == "1 episodes have another rate than 10 Hz; the first 9 Hz"
    assert found(health, "jitter").episode == 2


def test_frames_that_are_damaged_empty_or_stand_still(tmp_path):
    made = Set2(tmp_path / "two", lengths=(30, 30, 30), cameras=("front",))
    made.frames["front"][1][10:25] = made.frames["front"][1][10]
    made.frames["front"][2][:] = 0
    made.write()
    video = made.video("front", 0)
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 3] + bytes(200) + data[len(data) // 3 + 200 :])
    health = examine(open_dataset(made.path), "all")
    frozen, empty, damaged = (found(health, name) for name in ("frozen frames", "empty frames", "frames"))
    assert frozen.episode == 1
    assert frozen.step in range(9, 13)  # a codec makes frames equal a little late
    assert (empty.episode, empty.step) == (2, 0)
    assert "30 of " in empty.text
    assert (damaged.severity, damaged.episode) == ("error", 0)
    video.unlink()
    assert found(examine(open_dataset(made.path)), "missing video").text.endswith("1 of 3 episodes are missing: 0")


def test_stored_statistics_of_other_rows(tmp_path):
    made = Set2(tmp_path / "two", lengths=(30, 40))
    rows = np.concatenate([rows["action"] for rows in made.rows])
    right = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
    path = made.write()

    def said(**wrong) -> list[str]:
        stats = {name: np.asarray(value).tolist() for name, value in {**right, **wrong}.items()}
        (path / "meta" / "stats.json").write_text(json.dumps({"action": stats}))
        return [f.text for f in examine(open_dataset(path)).findings if f.check == "statistics"]

    assert said() == []
    off = rows.mean(0) + np.array([0, 0.5]) * rows.std(0)
    assert f"mean {off[1]:.4g} at dimension 1" in said(mean=off)[0]
    assert "has 1 values, the rows have 2" in said(std=[1.0])[0]
    assert "max" in said(max=rows.max(0) * 2)[0]
    assert difference({"mean": ["x"]}, {"mean": rows.mean(0), "std": rows.std(0)}) == "its mean holds no numbers"


def test_measures_are_those_of_all_rows():
    random = np.random.default_rng(0)
    episodes = [random.normal(size=(int(n), 4)) for n in random.integers(3, 40, 25)]
    for rows in episodes:
        rows[:, 3] = np.rint(rows[:, 3])
    measures = RowMeasures(np.full(4, -1.0), np.full(4, np.inf))
    for number, rows in enumerate(episodes):
        measures.add(rows, number)
    whole = np.concatenate(episodes)
    first = np.concatenate([np.diff(rows, axis=0) for rows in episodes])
    second = np.concatenate([np.diff(rows, 2, axis=0) for rows in episodes])
    np.testing.assert_allclose(measures.std, whole.std(0))
    np.testing.assert_allclose(measures.jerk, np.sqrt((second**2).mean(0) / (first**2).mean(0)))
    np.testing.assert_array_equal(measures.outside, (whole < -1).sum(0))
    np.testing.assert_array_equal(measures.largest.count, (whole == whole.max(0)).sum(0))
    np.testing.assert_array_equal(measures.smallest.count, (whole == whole.min(0)).sum(0))
    assert measures.is_switch.tolist() == [False, False, False, True]
    for dimension in range(4):
        expected = np.sort(np.abs(first[:, dimension]))[::-1][:KEPT]
        np.testing.assert_allclose(np.sort(measures.jumps.values[dimension])[::-1], expected)
        for value, (episode, step) in zip(
            measures.jumps.values[dimension], measures.jumps.places[dimension], strict=True
        ):
            rows = episodes[episode]
            assert abs(rows[step, dimension] - rows[step - 1, dimension]) == pytest.approx(value)


def test_extremes_and_largest_of_short_episodes():
    extreme, largest = Extreme(1, 1), Largest(1)
    for episode, rows in enumerate(([1.0], [3.0, 1.0, 3.0, 3.0], [2.0, 3.0])):
        extreme.add(np.array(rows)[:, None], episode)
        largest.add(np.array(rows)[:, None], np.array(rows)[:, None], episode, 0)
    assert (extreme.count[0], extreme.entries[0], extreme.entering[0]) == (4, 1, 2.0)
    assert extreme.place[0].tolist() == [1, 0]
    assert largest.values[0][:7].tolist() == [3, 3, 3, 3, 2, 1, 1]
    assert 0 < SPIKE < 1


def test_the_page_carries_all_in_itself(tmp_path):
    made = Set2(tmp_path / "two", lengths=(30, 30, 30, 30), cameras=("front",))
    made.rows[2]["observation.state"][3, 1] = np.nan
    data = open_dataset(made.write())
    page = render(data, examine(data), "<my set>")
    assert "&lt;my set&gt;" in page
    assert "nan at row 3" in page
    assert page.count("data:image/jpeg;base64,") == 4
    assert page.count('aria-label="action.left"') == 1
    assert "http://" not in page
    assert "<script" not in page


def test_the_exit_status_is_for_machines(tmp_path):
    episodes = good()
    path = stored(tmp_path, episodes).path
    short(episodes)
    spoilt = stored(tmp_path / "spoilt", episodes).path

    def status(*words: str) -> int:
        return programs.run("-m", "flowhand", "inspect", *words).returncode

    assert status(str(spoilt), "strict=true", f"page={tmp_path / 'page.html'}") == 1
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert status(str(path), "strict=true") == 0
    file = spoilt / "episodes" / "000003.npz"
    file.write_bytes(file.read_bytes()[:-30])
    health = looked_at(opened(InspectRoot(str(spoilt))), InspectRoot(str(spoilt)))
    assert [found.episode for found in health.findings if found.severity == "error"] == [3]


def test_a_checkpoint_of_other_rows_is_told(tmp_path):
    import torch

    import policies

    episodes = good()
    store = stored(tmp_path, episodes)
    config = policies.PolicyConfig()
    narrow = {name: replace(feature, dtype="float32") for name, feature in store.spec.observation.items()}
    policy = policies.Policy(config, Spec(narrow, replace(store.spec.action, dtype="float32"), 0.1))
    state = torch.from_numpy(np.concatenate([e.observation["state"] for e in episodes])).float()
    action = torch.from_numpy(np.concatenate([e.action for e in episodes])).float()
    source = policies.Provenance({"kind": "toy"}, "toy", "wave", "", [], {}, "", 0)
    golden = {"state": torch.zeros(1, policy.chunk.history, 3)}
    for name, scale in (("same", 1.0), ("other", 1.5)):
        policy.fit_normalizers({"state": state}, scale * action)
        policies.save(tmp_path / name, policy, source, golden, {})
        where = InspectRoot(str(store.path), checkpoint=str(tmp_path / name))
        told = [f for f in looked_at(opened(where), where).findings if f.check == "checkpoint"]
        assert [f.dimension for f in told] == ([] if name == "same" else ["action"])
