"""robomimic's files, Isaac Lab's variant, and Minari's data sets."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowhand.demos.hdf5_files.minari import MinariDataset
from flowhand.demos.hdf5_files.robomimic import RobomimicDataset
from tests.demos.recorded import described
from tests.demos.test_lerobot import error_of

hdf5: Any = pytest.importorskip("h5py")

LENGTHS = {"demo_10": 6, "demo_2": 5, "demo_0": 7}


def robomimic(path: Path, success: dict[str, bool] | None = None, **env_kwargs) -> Path:
    with hdf5.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": env_kwargs})
        data.attrs["total"] = sum(LENGTHS.values())
        for name, steps in LENGTHS.items():
            random = np.random.default_rng(steps)
            demo = data.create_group(name)
            demo.attrs["num_samples"] = steps
            demo.attrs["ep_meta"] = json.dumps({"lang": f"lift {name}"})
            if success:
                demo.attrs["success"] = np.bool_(success[name])
            demo["actions"] = random.normal(size=(steps, 4))  # float64, as writers often leave it
            demo["rewards"] = np.arange(steps, dtype=float)
            demo["obs/object"] = random.normal(size=(steps, 3)).astype(np.float32)
            demo["obs/eye_image"] = random.integers(0, 256, (steps, 16, 20, 3), np.uint8)
            demo["obs/datagen/pose"] = np.zeros((steps, 4, 4))
            demo["states"] = random.normal(size=(steps, 9))
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
    return path


def test_robomimic(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5", control_freq=25)
    data = RobomimicDataset(path)
    assert list(data.lengths) == [7, 5, 6]  # in the order of the numbers
    assert data.tasks[2] == "lift demo_10"
    assert data.spec.control_dt_s == 1 / 25
    assert data.warnings == []
    assert list(data.left_out) == ["obs/datagen/pose"]
    with hdf5.File(path) as file:
        for number, name in enumerate(("demo_0", "demo_2", "demo_10")):
            got = data.read(number)
            got.validate(described(data))
            demo = file["data"][name]
            np.testing.assert_array_equal(got.action, demo["actions"][()].astype(data.spec.action.dtype))
            np.testing.assert_array_equal(got.observation["object"], demo["obs/object"][()])
            np.testing.assert_array_equal(got.observation["eye_image"], demo["obs/eye_image"][()])
            np.testing.assert_array_equal(data.read(number, 2, 4).reward, [2, 3])
    assert data.columns["eye_image"].kind == "image"


def test_robomimic_filters_and_features(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5", control_freq=20)
    data = RobomimicDataset(path, filter_key="train", observation={"pose": "obs/datagen/pose", "all": "states"})
    assert list(data.lengths) == [7, 6]
    assert data.spec.observation["pose"].shape == (4, 4)
    assert "no filter 'vaild'; choices: train" in error_of(lambda: RobomimicDataset(path, filter_key="vaild"))
    assert "column 'obs/objet' is missing" in error_of(lambda: RobomimicDataset(path, observation={"o": "obs/objet"}))


def test_failed_episodes_are_told_from_good_ones(tmp_path):
    success = {"demo_0": True, "demo_2": False, "demo_10": True}
    path = robomimic(tmp_path / "lift.hdf5", success, control_freq=20)
    data = RobomimicDataset(path)
    assert list(data.lengths) == [7, 6]
    assert data.warnings == ["1 of 3 episodes failed and are left out; failed=keep reads them too"]
    assert data.read(0).success.tolist() == [False] * 6 + [True]
    assert list(RobomimicDataset(path, failed="only").lengths) == [5]
    assert not RobomimicDataset(path, failed="keep").read(1).success.any()
    path = robomimic(tmp_path / "bad.hdf5", dict.fromkeys(success, False), control_freq=20)
    assert "all 3 episodes failed; failed=keep reads them" in error_of(lambda: RobomimicDataset(path))


def test_robomimic_says_what_it_assumes_and_refuses_what_contradicts(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5")
    assert "20 control steps a second are assumed" in RobomimicDataset(path).warnings[0]
    assert RobomimicDataset(path, rate_hz=30).warnings == []
    with hdf5.File(path, "r+") as file:
        del file["data/demo_2/obs/object"]
        file["data/demo_2/obs/object"] = np.zeros((4, 3), np.float32)
    line = error_of(lambda: RobomimicDataset(path).read(1))
    assert "episode demo_2: column 'obs/object' has 4 rows of float32, expected 5 of float32" in line
    with hdf5.File(path, "r+") as file:
        file["data/demo_0"].attrs["num_samples"] = 8
    assert "episode demo_0: num_samples is" in error_of(lambda: RobomimicDataset(path))


def test_other_files_are_not_read_through_this_one(tmp_path):
    with hdf5.File(tmp_path / "secret.hdf5", "w") as file:
        file["x"] = np.zeros((7, 3), np.float32)
    (tmp_path / "raw.bin").write_bytes(bytes(7 * 3 * 4))
    for number in range(3):
        path = robomimic(tmp_path / f"lift{number}.hdf5")
        with hdf5.File(path, "r+") as file:
            obs = file["data/demo_0/obs"]
            del obs["object"]
            if number == 0:
                obs["object"] = hdf5.ExternalLink(str(tmp_path / "secret.hdf5"), "x")
            elif number == 1:
                obs.create_dataset("object", (7, 3), "f4", external=[(str(tmp_path / "raw.bin"), 0, 84)])
            else:
                layout = hdf5.VirtualLayout((7, 3), "f4")
                layout[:] = hdf5.VirtualSource(str(tmp_path / "secret.hdf5"), "x", (7, 3))
                obs.create_virtual_dataset("object", layout)
        assert "another file" in error_of(lambda path=path: RobomimicDataset(path).read(0))


def test_a_bomb_is_not_set_off(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5")
    with hdf5.File(path, "r+") as file:
        obs = file["data/demo_0/obs"]
        del obs["object"]
        obs.create_dataset("object", (7, 2**20, 2**10), "f4", chunks=(1, 2**10, 2**10), compression="gzip")
    assert "more than" in error_of(lambda: RobomimicDataset(path).read(0))


def complaint(reader, path) -> str:
    """What reading all of a set leads to; "" if it can be read."""
    try:
        data = reader(path)
        for episode in range(len(data)):
            data.read(episode)
    except ValueError as error:
        return str(error)
    return ""


def test_damaged_files_are_one_line_each(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5", control_freq=20)
    content, random, failed = path.read_bytes(), np.random.default_rng(0), 0
    for attempt in range(150):
        damaged = bytearray(content)
        if attempt % 3 == 0:
            damaged = damaged[: int(random.integers(0, len(damaged)))]
        else:
            for place in random.integers(0, 6000, 1 + attempt % 7):
                damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(damaged))
        line = complaint(RobomimicDataset, path)
        failed += line != ""
        assert "\n" not in line
        assert line == "" or str(path) in line
    assert failed > 60


def minari(path: Path, jpeg: bool = False) -> Path:
    """By hand, as Minari's HDF5 storage lays it out; the collector itself is tried below."""
    from PIL import Image

    (path / "data").mkdir(parents=True)
    box = {"type": "Box", "dtype": "float64", "shape": [3], "low": [-1] * 3, "high": [1] * 3}
    image = {"type": "Box", "dtype": "uint8", "shape": [16, 20, 3], "low": 0, "high": 255}
    space = {"type": "Dict", "subspaces": {"goal": box, "eye": image}}
    action = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 4}
    about = {"observation_space": json.dumps(space), "action_space": json.dumps(action), "total_episodes": 2}
    (path / "data" / "metadata.json").write_text(json.dumps(about))
    with hdf5.File(path / "data" / "main_data.hdf5", "w") as file:
        for number, steps in enumerate((6, 4)):
            random, episode = np.random.default_rng(number), file.create_group(f"episode_{number}")
            episode.attrs.update({"id": number, "total_steps": steps, "seed": 40 + number})
            episode["observations/goal"] = random.normal(size=(steps + 1, 3))
            images = np.repeat(random.integers(0, 256, (steps + 1, 1, 1, 3), np.uint8), 320, 1).reshape(-1, 16, 20, 3)
            if jpeg:
                cells = []
                for picture in images:
                    buffer = io.BytesIO()
                    Image.fromarray(picture).save(buffer, "JPEG", quality=100)
                    cells.append(np.frombuffer(buffer.getvalue(), np.uint8))
                kept = episode.create_dataset("observations/eye", (steps + 1,), hdf5.vlen_dtype(np.uint8))
                for step, cell in enumerate(cells):
                    kept[step] = cell
            else:
                episode["observations/eye"] = images
            episode["actions"] = random.integers(0, 4, steps)
            episode["rewards"] = np.arange(steps, dtype=float)
            episode["terminations"] = episode["truncations"] = np.zeros(steps, bool)
            episode["infos/success"] = np.arange(steps + 1) == steps
    return path


@pytest.mark.parametrize("jpeg", [False, True])
def test_minari(tmp_path, jpeg):
    path = minari(tmp_path / "set", jpeg)
    data = MinariDataset(path, rate_hz=50)
    assert list(data.lengths) == [6, 4]
    assert data.spec.action.choices == (4,)
    assert data.spec.action.shape == (1,)
    with hdf5.File(path / "data" / "main_data.hdf5") as file:
        for number, steps in enumerate((6, 4)):
            got = data.read(number)
            episode = file[f"episode_{number}"]
            np.testing.assert_array_equal(
                got.observation["goal"], episode["observations/goal"][:steps].astype(got.observation["goal"].dtype)
            )
            np.testing.assert_array_equal(got.action[:, 0], episode["actions"][()])
            assert got.observation["eye"].shape == (steps, 16, 20, 3)
            if not jpeg:
                np.testing.assert_array_equal(got.observation["eye"], episode["observations/eye"][:steps])
            assert got.seed == 40 + number
            assert got.success.tolist() == [False] * (steps - 1) + [True]
            got.validate(described(data))
    assert MinariDataset(path / "data").read(1, 1, 3).reward.tolist() == [1, 2]


def test_minari_refuses_what_does_not_fit(tmp_path):
    path = minari(tmp_path / "set")
    with hdf5.File(path / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1/observations/goal"]
        file["episode_1/observations/goal"] = np.zeros((4, 3))
    assert "episode_1: column 'goal' has 4 rows, expected 5" in error_of(lambda: MinariDataset(path).read(1))
    about = json.loads((path / "data" / "metadata.json").read_text())
    (path / "data" / "metadata.json").write_text(json.dumps({**about, "data_format": "arrow"}))
    assert "only hdf5 can be read" in error_of(lambda: MinariDataset(path))


@pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning")
def test_what_minari_itself_wrote(tmp_path, monkeypatch):
    import gymnasium

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    package: Any = pytest.importorskip("minari")
    buffer: Any = importlib.import_module("minari.data_collector").EpisodeBuffer

    env, buffers = gymnasium.make("CartPole-v1"), []
    for number in range(2):
        observations = [env.reset(seed=number)[0]]
        observations += [env.step(step % 2)[0] for step in range(6 + number)]
        steps = len(observations) - 1
        flags = {"terminations": [False] * steps, "truncations": [False] * (steps - 1) + [True]}
        actions = np.arange(steps) % 2
        buffers.append(
            buffer(
                id=number,
                seed=number,
                observations=np.stack(observations),
                actions=actions,
                rewards=[1.0] * steps,
                **flags,
            )
        )
    env.close()
    about = {"env": "CartPole-v1", "data_format": "hdf5", "code_permalink": "-", "author": "-", "author_email": "-"}
    about |= {"algorithm_name": "-", "description": "-"}
    made = package.create_dataset_from_buffers("cartpole/test-v0", buffers, **about)
    data = MinariDataset(tmp_path / "cartpole" / "test-v0", rate_hz=50)
    assert len(data) == made.total_episodes == 2
    assert data.spec.action.choices == (2,)
    for number, expected in enumerate(made.iterate_episodes()):
        got = data.read(number)
        np.testing.assert_array_equal(got.observation["state"], expected.observations[:-1])
        np.testing.assert_array_equal(got.action[:, 0], expected.actions)
        np.testing.assert_array_equal(got.reward, np.asarray(expected.rewards, np.float32))
        assert got.seed == number
