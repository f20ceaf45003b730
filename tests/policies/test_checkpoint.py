"""The checkpoint directory: what is saved comes back, a kill loses nothing, no damaged or hostile file is believed.

tests/golden/v1 is a checkpoint that must load for ever. A new format version gets a folder of its own beside it,
written once by

    python -c "from tests.policies.test_checkpoint import write_golden; write_golden('tests/golden/v2')"

and an entry in `GOLDEN`; the old folders stay as they are.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import threading
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import policies
from flowhand.contracts import durable
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies import Policy, PolicyConfig, Provenance, checkpoint
from policies.encoders import ENCODERS
from policies.encoders.state import StateEncoderConfig
from policies.heads import HEADS
from policies.nets import NETS
from policies.nets.mlp import MLPConfig
from tests.cases import each_head_and_each_net

GOLDEN = {"v1": Path(__file__).parents[1] / "golden" / "v1"}
COMBINATIONS = [(e, net, head) for e in ENCODERS if e != "elements" for net in NETS for head in HEADS]
TRAIN_STATE = {
    "step": 7,
    "weights": {"a": torch.arange(3.0), "b": [torch.ones(2, dtype=torch.int64), None]},
    "history": [{"step": 1, "loss": 0.5, "name": "x"}],
    "overrides": ["net=mlp"],
}


def write_golden(path: str) -> None:
    """Writes a tiny checkpoint of the current format version."""
    torch.manual_seed(0)
    observation = {
        "state": Feature((3,), "float32", "m", (-1.0,) * 3, (1.0,) * 3),
        "goal": Feature((2,), "float32", ""),
    }
    spec = Spec(observation, Feature((2,), "float32", "N"), control_dt_s=0.05)
    config = PolicyConfig(
        ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2),
        encoder=StateEncoderConfig(width=8),
        net=MLPConfig(width=8, blocks=1),
    )
    policy = Policy(config, spec)
    for p in policy.parameters():
        p.data.normal_(std=0.5)
    policy.fit_normalizers({"state": torch.randn(20, 3), "goal": torch.randn(20, 2)}, torch.randn(20, 2))
    source = Provenance({"kind": "toy"}, "toy 1", "reach", "0" * 64, [0, 1], {"torch": "2"}, "", 10)
    history = {"state": torch.randn(4, 2, 3), "goal": torch.randn(4, 2, 2)}
    policies.save(path, policy, source, history, {"step": 10, "weights": torch.ones(2)})


@pytest.mark.parametrize("version", GOLDEN)
def test_a_committed_checkpoint_loads_for_ever(version):
    path = GOLDEN[version]
    policy = policies.load(path)
    config, spec, source = policies.read_config(path)
    assert (config, spec) == (policy.config, policy.spec)
    assert config.chunk == ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2)
    assert spec.observation["state"] == Feature((3,), "float32", "m", (-1.0,) * 3, (1.0,) * 3)
    assert source.train_steps == 10
    assert torch.equal(policies.load_train_state(path)["weights"], torch.ones(2))
    assert sum(file.stat().st_size for file in path.iterdir()) < 100_000


def golden_observation(policy: Policy, rows: int = 4) -> dict[str, torch.Tensor]:
    history = policy.config.chunk.history
    return {name: torch.randn(rows, history, *f.shape) for name, f in policy.spec.observation.items()}


def act(policy: Policy) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    history = policy.config.chunk.history
    observation = {
        name: torch.randn(5, history, *f.shape, generator=generator) for name, f in policy.spec.observation.items()
    }
    with torch.no_grad():
        return policy.sample(observation, torch.randn(5, *policy.chunk_shape, generator=generator))


@pytest.fixture
def save(provenance) -> Callable[[Path, Policy], None]:
    return lambda path, policy: policies.save(path, policy, provenance, golden_observation(policy), TRAIN_STATE)


@pytest.fixture
def path(tmp_path, make_policy, save) -> Path:
    """A good checkpoint."""
    save(tmp_path / "checkpoint", make_policy())
    return tmp_path / "checkpoint"


# --- what is saved comes back


@pytest.mark.parametrize(("encoder", "net", "head"), each_head_and_each_net(COMBINATIONS))
def test_a_loaded_policy_gives_the_same_actions_bit_for_bit(tmp_path, make_policy, save, encoder, net, head):
    policy = make_policy(encoder, net, head)
    save(tmp_path / "new" / "folder", policy)
    loaded = policies.load(tmp_path / "new" / "folder")
    assert torch.equal(act(loaded), act(policy))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert sorted(os.listdir(tmp_path / "new")) == ["folder"]


def test_configuration_specification_and_provenance_come_back(path, make_policy, provenance, spec):
    assert policies.read_config(path) == (make_policy().config, spec, provenance)
    assert policies.read_config(str(path)) == policies.read_config(path)


@pytest.mark.parametrize("read", [policies.load, policies.read_config, policies.load_train_state])
def test_a_runs_folder_stands_for_its_checkpoint(path, read):
    (path.parent / "metrics.json").write_text("{}")
    read(path.parent)
    read(str(path.parent))
    assert policies.checkpoint_in(path.parent) == policies.checkpoint_in(path) == path
    path.rename(path.with_name("checkpoint.previous"))  # a save that was killed between its two renames
    read(path.parent)


def test_a_loaded_policy_says_where_it_comes_from(path, make_policy, provenance):
    policy = policies.load(path)
    assert policy.provenance == policy.with_head(steps=2).provenance == provenance
    assert (policy.words, policy.identity, policy.device_name) == ("flow policy", None, "cpu")
    assert policy.changed_head == {}
    assert policy.with_head(steps=2).with_head(guidance=1.0).changed_head == {"steps": 2}
    with pytest.raises(ValueError, match="the policy was not loaded from a checkpoint"):
        _ = make_policy().provenance


def test_the_train_state_comes_back(path):
    state = policies.load_train_state(path)
    assert state["history"] == TRAIN_STATE["history"]
    assert state["overrides"] == TRAIN_STATE["overrides"]
    assert torch.equal(state["weights"]["a"], TRAIN_STATE["weights"]["a"])
    assert torch.equal(state["weights"]["b"][0], TRAIN_STATE["weights"]["b"][0])
    assert state["weights"]["b"][1] is None


def test_nothing_in_a_checkpoint_names_code(path):
    text = (path / "config.json").read_text()
    assert "_target_" not in text
    assert "policies" not in text


def test_an_earlier_checkpoint_is_replaced(path, make_policy, save):
    policy = make_policy()
    save(path, policy)
    assert torch.equal(act(policies.load(path)), act(policy))
    assert os.listdir(path.parent) == ["checkpoint"]


# --- a save that does not come to its end


class Killed(BaseException):
    """Stands for a process that ends here."""


def kill_at(monkeypatch, number: int) -> list[str]:
    """Lets the process end at the `number`-th write, sync or rename; nothing after it is done, no cleaning either."""
    done: list[str] = []

    def mortal(name: str, call):
        def wrapped(*args, **kwargs):
            if len(done) == number:
                raise Killed
            done.append(name)
            return call(*args, **kwargs)

        return wrapped

    calls = ((os, "rename"), (os, "fsync"), (torch, "save"), (Path, "write_bytes"), (durable, "exchange"))
    for owner, name in calls:
        monkeypatch.setattr(owner, name, mortal(name, getattr(owner, name)))
    monkeypatch.setattr(shutil, "rmtree", mortal("rmtree", shutil.rmtree))
    return done


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint_whole(tmp_path, make_policy, save):
    old, new = make_policy(), make_policy()
    finished, seen = False, set()
    for number in range(100):
        path = tmp_path / str(number) / "checkpoint"
        save(path, old)
        with pytest.MonkeyPatch.context() as patch:
            done = kill_at(patch, number)
            try:
                save(path, new)
                finished = True
            except Killed:
                pass
        action = act(policies.load(path))
        assert policies.load_train_state(path)["step"] == 7
        seen.add("new" if torch.equal(action, act(new)) else "old")
        assert torch.equal(action, act(new)) or torch.equal(action, act(old))
        save(path, new)  # and the next save goes on from there
        assert torch.equal(act(policies.load(path)), act(new))
        if finished:
            assert done.count("exchange") == 1
            assert done.count("fsync") == 6  # four files, and the folders that name them
            break
    assert finished
    assert seen == {"old", "new"}


@pytest.mark.parametrize("read", [policies.load, policies.read_config, policies.load_train_state])
def test_after_a_kill_between_the_two_renames_every_reader_finds_the_earlier_one_and_leaves_it(path, read):
    os.rename(path, path.with_name("checkpoint.previous"))
    read(path)
    assert os.listdir(path.parent) == ["checkpoint.previous"]


@pytest.mark.parametrize("step", ["write_bytes", "save", "exchange"])
def test_a_save_that_fails_leaves_the_old_checkpoint_and_nothing_else(monkeypatch, path, make_policy, save, step):
    before = act(policies.load(path))
    owner = {"write_bytes": Path, "save": torch, "exchange": durable}[step]

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(OSError, match="No space left"):
            save(path, make_policy())
    assert os.listdir(path.parent) == ["checkpoint"]
    assert torch.equal(act(policies.load(path)), before)


def test_a_policy_that_is_not_ready_is_not_saved(path, make_policy, save):
    before = act(policies.load(path))
    policy = make_policy()
    next(policy.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="has NaN or infinity"):
        save(path, policy)
    assert os.listdir(path.parent) == ["checkpoint"]
    assert torch.equal(act(policies.load(path)), before)


@pytest.mark.parametrize("content", [[], ["thesis.tex"], ["config.json"], ["config.json", "model.safetensors"]])
def test_a_folder_that_is_no_checkpoint_is_not_overwritten(tmp_path, make_policy, save, content):
    path = tmp_path / "mine"
    path.mkdir()
    for name in content:
        (path / name).write_text("{}")
    with pytest.raises(ValueError, match="mine exists and is no checkpoint; it is not overwritten, choose another"):
        save(path, make_policy())
    assert sorted(os.listdir(path)) == sorted(content)
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_is_not_overwritten(tmp_path, make_policy, save):
    (tmp_path / "mine").write_text("thesis")
    with pytest.raises(ValueError, match="mine exists and is no checkpoint"):
        save(tmp_path / "mine", make_policy())
    assert (tmp_path / "mine").read_text() == "thesis"


# --- config.json


def edit(path: Path, where: str, value: Any) -> None:
    """Sets one field of config.json, or removes it (`...`)."""
    data = json.loads((path / "config.json").read_text())
    *groups, name = where.split("/")
    part = data
    for group in groups:
        part = part[group]
    if value is ...:
        del part[name]
    else:
        part[name] = value
    (path / "config.json").write_text(json.dumps(data))


FEATURE = {"shape": [3], "dtype": "float32", "unit": "m", "low": None, "high": None}


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("format_version", 2, "has format version 2, this flowhand reads 1; a newer flowhand may have written it"),
        ("format_version", "1", "has format version '1'"),
        ("format_version", True, "has format version True"),
        ("format_version", ..., "has format version None"),
        ("code", "import os", "has the fields ['code', 'format_version', 'policy', 'provenance', 'spec'], expected"),
        ("spec", ..., "has the fields ['format_version', 'policy', 'provenance'], expected"),
        ("policy/net/kind", "lstm", f"policy.net.kind is 'lstm'; choices: {', '.join(sorted(NETS))}"),
        ("policy/head/kind", "__import__", f"policy.head.kind is '__import__'; choices: {', '.join(sorted(HEADS))}"),
        ("policy/encoder/kind", None, "policy.encoder.kind is None; choices: elements, state"),
        ("policy/net/_target_", "os.system", "policy.net has the unknown field '_target_'"),
        ("policy/head/step", 3, "policy.head has the unknown field 'step'; did you mean 'steps'?"),
        ("policy/net/width", ..., "policy.net lacks the field 'width'"),
        ("policy/net/width", True, "policy.net.width is True, expected a value of type int"),
        ("policy/net/width", "16", "policy.net.width is '16', expected a value of type int"),
        ("policy/net/width", -16, "net.width=-16 must lie in 1..65536"),
        ("policy", 1, "policy is 1, expected fields and values"),
        ("spec", [], "spec is [], expected fields and values"),
        ("spec/observation", {}, "the specification has no observation feature"),
        ("spec/observation", [FEATURE], "the specification's observation is ["),
        ("spec/observation/state", 3, "config.json: "),
        ("spec/observation/a.b", FEATURE, "the observation name 'a.b' is reserved or no identifier"),
        ("spec/observation/keys", FEATURE, "the observation name 'keys' is reserved or no identifier"),
        ("spec/action/shape", [2**31], "feature shape (2147483648,) has more than"),
        ("spec/observation/state/shape", [2**31, 2**31], "has more than"),
        ("spec/action/shape", [-1], "feature shape (-1,) must be 1 to 31 positive integers"),
        ("spec/action/shape", 2, "config.json: "),
        ("spec/action/dtype", "object", "feature dtype 'object' is unknown; choices: float16, float32"),
        ("spec/control_dt_s", 0, "control_dt_s is 0.0, expected a positive number"),
        ("spec/control_dt_s", [], "control_dt_s is [], expected a positive number"),
        ("provenance", ..., "has the fields ['format_version', 'policy', 'spec'], expected"),
        ("provenance/task", 3, "provenance.task is 3, expected a value of type str"),
        ("provenance/git_sha", ..., "provenance lacks the field 'git_sha'"),
        ("provenance/demonstration_seeds", [[1]], "provenance.demonstration_seeds is [[1]], expected a value of type"),
        ("provenance/env", "toy", "provenance.env is 'toy', expected a value of type"),
    ],
)
def test_a_wrong_configuration_is_an_error_naming_the_field(path, where, value, message):
    edit(path, where, value)
    for read in (policies.load, policies.read_config):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            read(path)
        assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json is not valid JSON"),
        (b"{", "config.json is not valid JSON"),
        (b"\xff\xfe{}", "config.json is not valid JSON"),
        (b"[" * 200_000, "config.json is not valid JSON (maximum recursion depth exceeded"),
        (b'{"a":' * 200_000, "config.json is not valid JSON (maximum recursion depth exceeded"),
        (b'{"format_version": ' + b"1" * 5000 + b"}", "config.json is not valid JSON (Exceeds the limit"),
        (b"[1]", "the checkpoint is [1], expected fields and values"),
        (b"null", "the checkpoint is None, expected fields and values"),
    ],
)
def test_a_damaged_configuration_is_an_error(path, content, message):
    (path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        policies.load(path)


def test_a_huge_configuration_is_not_read(path):
    os.truncate(path / "config.json", 2**40)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"config.json has 1099511627776 bytes, more than the 16777216 allowed"):
        policies.load(path)


@pytest.mark.parametrize("value", [10**5, 10**9, 10**13, 10**30])
@pytest.mark.parametrize("where", ["policy/net/width", "policy/encoder/width", "policy/chunk/history"])
def test_a_configuration_that_asks_for_more_memory_than_the_weights_fill_is_refused(path, where, value):
    """And before anything is allocated."""
    edit(path, where, value)
    refusals = r"the configuration needs|the configuration asks for tensors of an impossible|must lie in 1\.\.65536"
    with pytest.raises(ValueError, match=refusals):
        policies.load(path)


# --- model.safetensors


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, file)


@pytest.mark.parametrize("file", ["model.safetensors", "golden.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.0004, 0.01, 0.3, 0.7, 0.999])
def test_a_truncated_tensor_file_is_an_error(path, file, share):
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{file} cannot be read .*; the checkpoint is truncated or damaged"):
        policies.load(path)


@pytest.mark.parametrize("header", [2**63, 2**40, 8])
def test_a_tensor_file_that_lies_about_its_header_is_an_error(path, header):
    file = path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", header) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        policies.load(path)


@pytest.mark.parametrize("file", ["model.safetensors", "golden.safetensors"])
def test_what_the_file_says_of_itself_adds_no_line_to_the_error(path, file):
    (path / file).write_bytes((path / file).read_bytes().replace(b'"F32"', b'"\\nx"'))
    with pytest.raises(ValueError, match=f"{file} cannot be read .*; the checkpoint is truncated or damaged") as caught:
        policies.load(path)
    assert "\n" not in str(caught.value)


WEIGHT = "encoder.layers.0.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(WEIGHT), f"lacks the tensor '{WEIGHT}'"),
        (lambda t: t.pop("action_normalizer.scale"), "lacks the tensor 'action_normalizer.scale'"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds the unknown tensor 'extra'"),
        (lambda t: t.update({WEIGHT: t[WEIGHT][:-1]}), f"'{WEIGHT}' is torch.float32 (15,), the configuration needs"),
        (
            lambda t: t.update({WEIGHT: t[WEIGHT][None]}),
            f"'{WEIGHT}' is torch.float32 (1, 16), the configuration needs",
        ),
        (
            lambda t: t.update({WEIGHT: t[WEIGHT].double()}),
            f"'{WEIGHT}' is torch.float64 (16,), the configuration need",
        ),
        (lambda t: t[WEIGHT].fill_(torch.nan), f"weight '{WEIGHT}' has NaN or infinity"),
        (lambda t: t[WEIGHT].fill_(torch.inf), f"weight '{WEIGHT}' has NaN or infinity"),
        (lambda t: t["action_normalizer.scale"].fill_(torch.nan), "the statistics of 'action' are missing"),
        (lambda t: t["action_normalizer.scale"].fill_(-1), "the statistics of 'action' are missing or not"),
        (lambda t: t["observation_normalizers.goal.scale"].fill_(0), "the statistics of 'goal' are missing or not"),
        (lambda t: t[WEIGHT][0].add_(0.5), "the policy's action differs from the stored one by"),
        (lambda t: t["action_normalizer.shift"].add_(0.5), "the policy's action differs from the stored one by"),
    ],
)
def test_wrong_weights_are_an_error_naming_the_tensor(path, change, message):
    rewrite(path / "model.safetensors", change)
    with pytest.raises(ValueError, match=re.escape(message)):
        policies.load(path)


# --- golden.safetensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["action"][0, 0].add_(0.01 * 3), "the policy's action differs from the stored one by"),
        (lambda t: t["action"].fill_(torch.nan), "the policy's action differs from the stored one by nan"),
        (lambda t: t["noise"].fill_(torch.nan), "the policy's action differs from the stored one by nan"),
        (lambda t: t.pop("noise"), "lacks the tensor 'noise'"),
        (lambda t: t.pop("observation.state"), "lacks the tensor 'observation.state'"),
        (lambda t: t.update(other=torch.zeros(1)), "holds the unknown tensor 'other'"),
        (lambda t: t.update(noise=torch.tensor(1.0)), "the configuration needs torch.float32 (1, "),
        (lambda t: t.update(action=t["action"][:2]), "'action' is torch.float32 (2, 4, 2), the configuration needs"),
        (lambda t: t.update(noise=t["noise"].double()), "'noise' is torch.float64 (4, 4, 2), the configuration needs"),
        (lambda t: t.update({n: v[:0] for n, v in t.items()}), "the configuration needs torch.float32 (1, "),
    ],
)
def test_a_wrong_golden_action_is_an_error(path, change, message):
    rewrite(path / "golden.safetensors", change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        policies.load(path)
    assert "golden.safetensors" in str(error.value)


# --- train_state.pt


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_does_not_run(path, legacy):
    trap = path.parent / "trap"
    torch.save({"step": Evil(trap)}, path / "train_state.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"train_state.pt cannot be read \(.*\); resume from another checkpoint"):
        policies.load_train_state(path)
    assert not trap.exists()
    torch.load(path / "train_state.pt", weights_only=False)
    assert trap.exists()  # the trap works


def test_a_truncated_train_state_is_an_error(path):
    content = (path / "train_state.pt").read_bytes()
    for length in range(0, len(content), 97):
        (path / "train_state.pt").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"train_state.pt cannot be read"):
            policies.load_train_state(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_noise_in_place_of_a_train_state_is_an_error(path):
    generator = np.random.default_rng(0)
    for start in (b"", b"\x80\x02", b"PK\x03\x04"):
        for _ in range(100):
            (path / "train_state.pt").write_bytes(start + generator.bytes(40))
            with pytest.raises(ValueError, match=r"train_state.pt cannot be read"):
                policies.load_train_state(path)


def test_a_train_state_that_is_no_dict_is_an_error(path):
    torch.save([1, 2], path / "train_state.pt")
    with pytest.raises(ValueError, match=r"train_state.pt holds a list, expected a dict"):
        policies.load_train_state(path)


def changed(path, change, method=zipfile.ZIP_STORED):
    """Writes the training state again, its pickle changed."""
    file = path / "train_state.pt"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def test_a_training_state_is_read_as_torch_reads_it(path):
    state = {
        "o": torch.nn.Linear(3, 2).state_dict(),
        "t": torch.arange(12.0).view(3, 4).t()[1:],
        "e": torch.empty(0, 3),
    }
    state |= {"b": torch.tensor(1.5, dtype=torch.bfloat16), "l": [1, (2, 3.0), None, True, 10**30, "é"]}
    torch.save(state, path / "train_state.pt")
    mine, theirs = policies.load_train_state(path), torch.load(path / "train_state.pt", weights_only=True)
    assert list(mine) == list(theirs)
    assert mine["l"] == theirs["l"]
    pairs = [(mine[name], theirs[name]) for name in "tbe"]
    for a, b in [*pairs, *((mine["o"][name], theirs["o"][name]) for name in theirs["o"])]:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_a_deflated_training_state_is_refused(path):
    changed(path, lambda pickled: pickled + bytes(10**6), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"cannot be read \(.* is compressed\)"):
        policies.load_train_state(path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\xe4\x0bT\x02\x85R.",  # ten thousand million bytes
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a place in a table of as many
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",  # lists in lists
        b"\x80\x02" + b"".join(b"](h%ch%ce" % (i, i) + b"q%c" % (i + 1) for i in range(1, 60)) + b".",
        b"\x80\x02]q\0h\0a.",  # a list in itself
        b"\x80\x02" + b"ccollections\nOrderedDict\n}b.",
    ],
)
def test_a_training_state_that_asks_for_memory_is_refused(path, program):
    changed(path, lambda pickled: program)
    with pytest.raises(ValueError, match=r"cannot be read \(.+\); resume from another checkpoint") as error:
        policies.load_train_state(path)
    assert "\n" not in str(error.value)


def test_a_tensor_larger_than_its_numbers_is_refused(path):
    torch.save({"step": torch.zeros(5)}, path / "train_state.pt")
    changed(path, lambda pickled: pickled.replace(b"K\x05\x85", b"\x8a\x05\0\xe4\x0bT\x02\x85"))
    with pytest.raises(ValueError, match=r"a tensor of shape \(10000000000,\) has 5 numbers"):
        policies.load_train_state(path)


def test_a_full_disk_is_told_as_the_system_tells_it(tmp_path, make_policy, save, monkeypatch):
    def full(self, data):
        if self.name == "train_state.pt":
            with open("/dev/full", "wb") as file:
                file.write(data)
        return real(self, data)

    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        save(tmp_path / "checkpoint", make_policy())
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_the_policy_does_not_need_the_train_state_to_be_sound(path):
    (path / "train_state.pt").write_bytes(b"damaged")
    policies.load(path)


# --- the directory


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("read", [policies.load, policies.read_config, policies.load_train_state])
def test_a_missing_file_is_an_error_naming_it(path, name, read):
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"checkpoint is no complete checkpoint: {name} is missing"):
        read(path)
    (path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is no regular file"):
        read(path)


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint directory at .*nowhere"):
        policies.load(tmp_path / "nowhere")


def test_provenance_is_stored_as_it_was_given(path, provenance):
    assert json.loads((path / "config.json").read_text())["provenance"] == asdict(provenance)


# --- readers beside a writer, and sizes that nobody asked for


@pytest.mark.parametrize("exchange", [True, False])
def test_readers_beside_a_training_that_saves_get_one_checkpoint_or_the_other(
    tmp_path, make_policy, save, monkeypatch, exchange
):
    if not exchange:
        monkeypatch.setattr(durable, "exchange", lambda one, other: False)
    path, pair = tmp_path / "checkpoint", (make_policy(), make_policy())
    save(path, pair[0])
    done, failures, loads = threading.Event(), [], []

    def reads():
        try:
            while not done.is_set():
                with policies.snapshot(path) as files:
                    loads.append(policies.load(files))  # whose stored action proves that nothing is mixed
                    assert policies.load_train_state(files)["step"] == 7
        except Exception as error:
            failures.append(repr(error))

    reader = threading.Thread(target=reads)
    reader.start()
    try:
        for number in range(9):
            save(path, pair[number % 2])
    finally:
        done.set()
        reader.join()
    assert failures == []
    assert loads
    assert torch.equal(act(policies.load(path)), act(pair[0]))
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors"])
def test_a_file_of_tensors_is_as_large_as_the_configuration_says_or_not_read(path, name, monkeypatch):
    os.truncate(path / name, 2**33)  # takes no room on the disk
    monkeypatch.setattr(safetensors.torch, "load", lambda content: pytest.fail("it was read"))
    if name == "golden.safetensors":
        monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"{name} has 8589934592 bytes, more than the \d+ allowed"):
        policies.load(path)


def test_golden_rows_are_bounded_when_written_and_when_read(path, make_policy, provenance, monkeypatch):
    policy = make_policy()
    many = golden_observation(policy, checkpoint.GOLDEN_ROWS + 1)
    with pytest.raises(ValueError, match="golden_observation has 65 rows, expected 1 to 64"):
        policies.save(path, policy, provenance, many, {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "GOLDEN_ROWS", 65)
        policies.save(path, policy, provenance, many, {})
        policies.load(path)
    with pytest.raises(ValueError, match=r"golden.safetensors: .* \(65, .*the configuration needs .* \(64, "):
        policies.load(path)


def test_a_checkpoint_behind_a_symbolic_link_is_saved_again_and_again(tmp_path, make_policy, save):
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoint").symlink_to(tmp_path / "disk" / "checkpoint")
    for _ in range(3):
        policy = make_policy()
        save(tmp_path / "checkpoint", policy)
        assert torch.equal(act(policies.load(tmp_path / "checkpoint")), act(policy))
    assert (tmp_path / "checkpoint").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["checkpoint"]
