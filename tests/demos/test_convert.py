"""A conversion loses nothing, touches no source, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from conf.verbs.convert import ConvertRoot
from flowhand.commands import convert as verb
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.conversion import convert as module
from flowhand.demos.conversion.convert import How, convert
from flowhand.demos.conversion.plan import Source, numbers_of, planned
from flowhand.demos.conversion.staging import require_free, unfinished
from flowhand.demos.formats import open_dataset
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store
from tests import programs
from tests.demos.recorded import Set2, Set3
from tests.demos.test_lerobot import error_of
from tests.demos.test_recorded_hdf5 import minari, robomimic
from tests.demos.test_replay_zarr import make

ROOT = Path(__file__).parents[2]


def opened(*paths: Path, **options) -> list[Source]:
    return [Source(str(path), open_dataset(path, **options)) for path in paths]


def written(target: Path, *paths: Path, how: How | None = None, **chosen):
    convert(planned(opened(*paths), **chosen), target, how or How())
    return open_dataset(target)


def same(got: Episode, expected: Episode) -> None:
    """To the last bit, in the same dtype."""
    assert set(got.observation) == set(expected.observation)
    for name, values in got.observation.items():
        assert values.dtype == expected.observation[name].dtype
        np.testing.assert_array_equal(values, expected.observation[name])
    assert got.action.dtype == expected.action.dtype
    for name in ("action", "reward", "success"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert got.task == expected.task


def content(path: Path) -> dict[str, str]:
    """Every file below a path, or the file, with its hash and time."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(f): f"{hashlib.sha256(f.read_bytes()).hexdigest()} {f.stat().st_mtime_ns}" for f in files}


SETS = {
    "lerobot 2": lambda path: Set2(path / "two", cameras=("front",)).write(),
    "lerobot 3": lambda path: Set3(path / "three", video_files={"front": ((0, 1), (2, 3, 4))}).write(),
    "robomimic": lambda path: robomimic(path / "lift.hdf5", {"demo_0": True, "demo_2": True, "demo_10": True}),
    "replay": lambda path: make(
        path / "set.zarr", np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)
    ),
    "minari": lambda path: minari(path / "minari"),
}


@pytest.mark.parametrize("format", ["lerobot", "native"])
@pytest.mark.parametrize("name", SETS)
def test_every_format_comes_back_to_the_last_bit(tmp_path, name, format):
    path = SETS[name](tmp_path)
    before = content(path)
    source = open_dataset(path)
    got = written(tmp_path / "new", path, how=How(format))
    assert content(path) == before
    assert type(got) is (LeRobotDataset if format == "lerobot" else Store)
    assert list(got.lengths) == list(source.lengths)
    for number in range(len(source)):
        same(got.read(number), source.read(number))
    assert not unfinished(tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "new"}


def test_videos_are_copied_and_not_encoded_again(tmp_path):
    path = SETS["lerobot 3"](tmp_path)
    got = written(tmp_path / "new", path, episodes=["1:"])
    assert isinstance(got, LeRobotDataset)
    files = [file.read_bytes() for file in sorted((tmp_path / "new/videos").rglob("*.mp4"))]
    assert files == [file.read_bytes() for file in sorted((path / "videos").rglob("*.mp4"))]
    np.testing.assert_array_equal(got.read(2).observation["front"], open_dataset(path).read(3).observation["front"])
    encoded = written(tmp_path / "other", path, how=How(images="png"))
    np.testing.assert_array_equal(encoded.read(4).observation["front"], open_dataset(path).read(4).observation["front"])


def test_frames_that_a_copy_would_shift_are_refused(tmp_path):
    made = Set2(tmp_path / "two", cameras=("front",))
    made.rows[1]["timestamp"] = made.rows[1]["timestamp"].copy()
    made.rows[1]["timestamp"][3:] += np.float32(0.02)  # within a quarter of a period: the reader finds the frames
    path = made.write()
    assert isinstance(written(tmp_path / "fine", path), LeRobotDataset)  # the frames themselves are at the rate
    skipping = Set2(tmp_path / "skip", cameras=("front",), lengths=(9, 5, 9))
    for name in ("observation.state", "action"):
        skipping.rows[1][name] = skipping.rows[1][name]
    skipping.rows[1]["timestamp"] = (np.array([0, 1, 3, 4, 5]) / 10).astype(np.float32)
    skipping.frames["front"][1] = np.concatenate([skipping.frames["front"][1], skipping.frames["front"][1][:1]])
    line = error_of(lambda: written(tmp_path / "new", skipping.write()))
    assert "episode 1: frames do not follow each other at 10 a second" in line
    assert "images=video" in line
    assert not (tmp_path / "new").exists()


def test_several_sources_are_joined_chosen_and_renamed(tmp_path):
    one, two = Set2(tmp_path / "one").write(), Set3(tmp_path / "two").write()
    got = written(
        tmp_path / "new",
        one,
        two,
        episodes=["-1", "0:2", "3"],
        tasks=["pick up the cube => lift it"],
    )
    sources = opened(one, two)
    expected = [sources[1].data.read(4), sources[0].data.read(0), sources[0].data.read(1), sources[1].data.read(0)]
    for number, episode in enumerate(expected):
        episode.task = episode.task.replace("pick up the cube", "lift it")
        same(got.read(number), episode)
    assert set(written(tmp_path / "same", one, tasks=["one text"]).tasks) == {"one text"}


def test_what_does_not_fit_is_one_line(tmp_path):
    one, other = Set2(tmp_path / "one"), Set2(tmp_path / "other", cameras=("front",))
    wide = Set2(tmp_path / "wide")
    wide.features["observation.state"] |= {"shape": [4], "names": None}
    for rows in wide.rows:
        rows["observation.state"] = np.pad(rows["observation.state"], ((0, 0), (0, 1)))
    fast = Set2(tmp_path / "fast")
    fast.info["fps"] = 20
    paths = [made.write() for made in (one, other, wide, fast)]

    def told(*chosen: int, **more: Sequence[str]) -> str:
        return error_of(lambda: planned(opened(*(paths[i] for i in chosen)), **more))

    assert f"only {paths[1]} has 'front'; drop=[front]" in told(0, 1)
    assert "the shape of 'state' is (3,) and (4,)" in told(0, 2)
    assert "the rate is 10 Hz and 20 Hz" in told(0, 3)
    assert "has no observation 'side' to drop; choices: state, front" in told(1, drop=["side"])
    assert "drop leaves no observation" in told(0, drop=["state"])
    assert "is the text of no episode; there are 'pick up the cube'" in told(0, tasks=["x => y"])
    for word in ("9", "3:3", "x", "1-2", "", ":x"):
        assert "episodes holds" in told(0, episodes=[word]), word
    assert "choices: lerobot, native" in error_of(lambda: How(format="rlds"))


def test_missing_videos_are_told_with_what_can_be_done(tmp_path):
    made = Set2(tmp_path / "two", cameras=("front",))
    path = made.write()
    made.video("front", 1).unlink()
    line = error_of(lambda: planned(opened(path)))
    assert "the videos of 'front' are missing in 1 of 3 episodes, the first of them 1" in line
    assert "drop=[front] or take some episodes, such as episodes=[0,2]" in line
    assert len(written(tmp_path / "some", path, episodes=["0", "2"])) == 2
    assert len(written(tmp_path / "all", path, drop=["front"])) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["0:3"], [0, 1, 2]),
        (["-2:"], [3, 4]),
        ([":"], [0, 1, 2, 3, 4]),
        (["4", "0:2", "1"], [4, 0, 1]),
        ([], [*range(5)]),
    ],
)
def test_numbers_of_episodes(words, expected):
    assert numbers_of(words, 5) == expected


def test_the_target_is_never_a_source(tmp_path):
    path = Set2(tmp_path / "one").write()
    (tmp_path / "link").symlink_to(path)
    for target in (path / "new", tmp_path / "link" / "data" / "new"):
        assert "lies in the source" in error_of(lambda target=target: require_free(target, [path]))
    for target in (path, tmp_path / "link"):
        assert "exists; choose another target" in error_of(lambda target=target: require_free(target, [path]))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "exists; choose another" in error_of(lambda: require_free(tmp_path / "dangling", [path]))
    assert "lies in the target" in error_of(lambda: require_free(tmp_path / "a", [tmp_path / "a" / "b"]))
    require_free(tmp_path / "new", [path])


def test_a_broken_episode_leaves_nothing_behind(tmp_path):
    made = Set2(tmp_path / "two")
    path = made.write()
    made.data(2).write_bytes(made.data(2).read_bytes()[:-9])
    assert str(made.data(2)) in error_of(lambda: written(tmp_path / "new", path))
    assert [p.name for p in tmp_path.iterdir()] == ["two"]


@pytest.mark.parametrize("format", ["lerobot", "native"])
def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, format):
    path = Set2(tmp_path / "two", lengths=(4,) * 8, cameras=("front",)).write()
    monkeypatch.setattr(module, "PART_S", 0.0)  # every episode is kept
    plan, how, read = planned(opened(path)), How(format, images="png"), module._read
    asked: list[int] = []

    def reading(taken, names):
        asked.append(taken.episode)
        if len(asked) == 6:
            raise OSError(28, "No space left on device")
        return read(taken, names)

    monkeypatch.setattr(module, "_read", reading)
    line = error_of(lambda: convert(plan, tmp_path / "new", how))
    assert line.startswith(f"no room on the disk of {tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()
    assert len(unfinished(tmp_path / "new")) == 1
    told: list[int] = []
    convert(plan, tmp_path / "new", how, told.append)
    assert asked == [0, 1, 2, 3, 4, 5, 5, 6, 7]
    assert told == [20, 4, 4, 4]
    monkeypatch.setattr(module, "_read", read)
    whole = written(tmp_path / "whole", path, how=how)
    got = open_dataset(tmp_path / "new")
    for number in range(8):
        same(got.read(number), whole.read(number))
    assert not unfinished(tmp_path / "new")
    if isinstance(got, LeRobotDataset):
        assert (tmp_path / "new/meta/stats.json").read_text() == (tmp_path / "whole/meta/stats.json").read_text()
        assert not list((tmp_path / "new").rglob("*unfinished*"))


def test_other_work_has_another_folder_and_one_writer_at_a_time(tmp_path):
    path = Set2(tmp_path / "two").write()
    plan = planned(opened(path))
    assert plan.key({"a": 1}) != plan.key({"a": 2})
    assert plan.key({}) != planned(opened(path), episodes=["0"]).key({})
    with module.staged(tmp_path / "new", plan.key({})):
        line = error_of(lambda: module.staged(tmp_path / "new", plan.key({})).__enter__())
        assert "another process converts to" in line


KILLED = """
import sys, os
from pathlib import Path
from flowhand.demos.conversion import convert as module
from flowhand.demos.conversion.plan import Source, planned
from flowhand.demos.formats import open_dataset
module.PART_S = 0.0
read = module._read
def slowly(taken, names):
        time.sleep(0.15)
    print(taken.episode, flush=True)
    return read(taken, names)
module._read = slowly
path, target, format = sys.argv[1:]
module.convert(planned([Source("two", open_dataset(path))]), Path(target), module.How(format))
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["lerobot", "native"])
def test_a_killed_conversion_goes_on(tmp_path, format):
    path = Set2(tmp_path / "two", lengths=(4,) * 6).write()
    words = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "new"), format]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                process.send_signal(signal.SIGKILL)
                break
    assert not (tmp_path / "new").exists()
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["3", "4", "5"], ["4", "5"])
    source, got = open_dataset(path), open_dataset(tmp_path / "new")
    for number in range(6):
        expected = source.read(number)
        same(got.read(number), expected)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv[1:] = sys.argv[2:]
from flowhand.commands.convert import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["lerobot", "native"])
def test_a_full_disk_is_one_line_and_no_half_target(tmp_path, format):
    """The system refuses to make a file larger than some size: what comes from it is what a full disk gives."""
    path = Set2(tmp_path / "two", lengths=(400, 300), cameras=()).write()
    words = [sys.executable, "-c", FULL, "6000", str(path), str(tmp_path / "new"), f"format={format}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: no room on the disk of {tmp_path / 'new'}")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    words[3] = str(resource.RLIM_INFINITY)
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert len(open_dataset(tmp_path / "new")) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"two", "new"}


def test_numbers_keep_their_dtype_or_are_refused(tmp_path):
    kinds = ("float16", "float32", "float64", "uint8", "uint16", "int32", "int64", "bool")
    spec = Spec({f"x_{kind}": Feature((2, 3), kind, "") for kind in kinds}, Feature((1,), "float16", ""), 0.1)
    store = Store.create(tmp_path / "store", StoreMeta(spec.to_dict(), "", "toy", "", {}))
    random = np.random.default_rng(0)
    observation = {name: random.integers(0, 2, (5, 2, 3)).astype(f.dtype) for name, f in spec.observation.items()}
    zeros = np.zeros(5, np.float32)
    store.append(Episode(observation, np.ones((5, 1), np.float16), zeros, zeros > 0, "go", 3, 0.1))
    same(written(tmp_path / "new", store.path).read(0), store[0])
    wrong = Set2(tmp_path / "two")
    for rows in wrong.rows:
        rows["observation.state"] = rows["observation.state"].astype(np.uint32)
    wrong.features["observation.state"]["dtype"] = "uint32"
    line = error_of(lambda: planned(opened(wrong.write())))
    assert "'state' is stored as uint32, which float32 cannot hold exactly; leave it out with drop=[state]" in line


def test_text_has_no_place_in_lerobot(tmp_path):
    spec = Spec(
        {"state": Feature((2,), "float32", "m"), "say": Feature((1,), "str", "")}, Feature((1,), "float32", ""), 0.1
    )
    store = Store.create(tmp_path / "store", StoreMeta(spec.to_dict(), "", "toy", "", {}))
    zeros = np.zeros(3, np.float32)
    observation = {"state": np.zeros((3, 2), np.float32), "say": np.array([["a"], ["b"], ["c"]])}
    store.append(Episode(observation, np.ones((3, 1), np.float32), zeros, zeros > 0, "go", 3, 0.1))
    assert "'say' is of kind 'text', which LeRobot has no place for; leave it out" in error_of(
        lambda: written(tmp_path / "new", store.path)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert len(written(tmp_path / "copy", store.path, how=How("native"))) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "b"], ["sources=[a]", "target=b"]),
        (["a", "b", "c", "format=native"], ["format=native", "sources=[a,b]", "target=c"]),
        (["target=c", "a"], ["target=c", "sources=[a]"]),
        (["sources=[a]", "c"], ["sources=[a]", "target=c"]),
        (["my set", "b,c"], ["sources=['my set']", "target='b,c'"]),
        (["--help"], ["--help"]),
    ],
)
def test_plain_words_are_sources_and_target(words, expected):
    assert verb.as_settings(words) == expected
    if words != ["--help"]:
        from conf import cli

        config = cli.compose(verb.as_settings(words), "convert")
        assert isinstance(config, ConvertRoot)
        assert config.target in ("b", "c", "b,c")


def test_the_command(tmp_path):
    path = Set2(tmp_path / "two").write()

    command = ["-m", "flowhand", "convert", str(path), str(tmp_path / "new")]
    alone = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"written    {tmp_path / 'new'}"
    assert " torch" not in done.stderr
    again = programs.run(*command)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == f"error: {tmp_path / 'new'} exists; choose another target"


def test_a_dry_run_says_all_and_writes_nothing(tmp_path, capsys):
    path = Set2(tmp_path / "two").write()
    verb.run(OmegaConf.structured(ConvertRoot([str(path)], str(tmp_path / "new"), dry_run=True)))
    text = capsys.readouterr().out
    assert "episodes   3 of 3, 21 steps at 10 Hz" in text
    assert "  state  float32 (3,)" in text
    assert "nothing was written" in text
    assert [p.name for p in tmp_path.iterdir()] == ["two"]
    line = error_of(lambda: verb.run(OmegaConf.structured(ConvertRoot([str(path)]))))
    assert "convert needs a source and a target" in line
