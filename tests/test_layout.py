"""The house keeps its shape: who may import whom, how files are cut, and what no file may say. Read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flowhand", "policies", "envs", "conf")
SOURCES = [
    ROOT / "train.py",
    ROOT / "eval.py",
    *(file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))),
]
EVERYTHING = [*SOURCES, *(file for name in ("plugins", "benchmarks") for file in sorted((ROOT / name).rglob("*.py")))]

# What a room may import of the other rooms. Rooms under flowhand/ have their own name; "programs" are the two doors.
ROOMS = {
    "contracts": set(),
    "demos": {"contracts"},
    "control": {"contracts"},
    "policies": {"contracts"},
    "envs": {"contracts"},
    "robots": {"contracts", "control"},
    "deploy": {"contracts", "control"},
    "evaluation": {"contracts", "control"},
    "pages": {"contracts", "evaluation", "demos"},
}
JOINING = ("conf", "commands", "benchmarks", "plugins", "programs", "flowhand")  # they may reach any room
TORCH = {"torch", "safetensors"}
HYDRA = {"hydra", "omegaconf"}
SIMULATORS = {"mujoco", "gymnasium", "metaworld", "gym_aloha"}
OUTSIDE = {  # the only rooms that may import these
    **{name: {"policies", "commands", "benchmarks", "plugins"} for name in TORCH},
    **{name: {"conf", "commands"} for name in HYDRA},
    **{name: {"envs", "benchmarks"} for name in SIMULATORS},
    "wandb": {"commands"},
}
# Large, and not needed for much: a machine may be without them.
LAZY = {"wandb", "av", "pyarrow", "h5py", "zarr", "numcodecs", "minari", "huggingface_hub", "pandas"}
CARRIED = {"flowhand/deploy/client.py"}  # to a robot, without the rest
MAX_FILE_LINES = 350
MAX_CARRIED_LINES = 450  # of a file that travels alone
MAX_FILES = 14  # of a folder, __init__.py not counted
MAX_FUNCTION_LINES = 60
MAX_P95_LINES = 30  # of nineteen functions in twenty


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def room_of(name: str) -> str:
    """The room of a file, or of a module with its dots replaced by slashes."""
    parts = name.removesuffix(".py").split("/")
    if parts[0] == "flowhand":
        return parts[1] if len(parts) > 1 and parts[1] in (*ROOMS, "commands") else "flowhand"
    return "programs" if parts[0] in ("train", "eval") else parts[0]


def imports(tree: ast.AST, package: str, inside: str = "") -> Iterator[tuple[str, str]]:
    """(imported module, name of the outermost function around it or ""); what is for the type checker alone is not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(node, package, inside or (node.name if function else ""))


parsed = cache(ast.parse)


def imported(file: str, source: str) -> Iterator[tuple[str, str]]:
    return imports(parsed(source), ".".join(file.split("/")[:-1]))


def violations(file: str, source: str) -> list[str]:
    """What a file imports that its place forbids."""
    room, found = room_of(file), []
    for module, function in imported(file, source):
        top = module.split(".")[0]
        if top in PACKAGES:
            other = room_of(module.replace(".", "/"))
            allowed = room in JOINING or other == room or other in ROOMS.get(room, ())
            if room == "flowhand" and not function and other not in ("flowhand", "contracts"):
                allowed = False
            if not allowed:
                found.append(f"{file} imports {module}")
        if room not in OUTSIDE.get(top, {room}):
            found.append(f"{file} imports {top}")
        if top in LAZY and not function:
            found.append(f"{file} imports {top} at its top; import it in the function that uses it")
        if file in CARRIED and top in PACKAGES:
            found.append(f"{file} imports {module}, and travels alone")
    return found


@pytest.mark.parametrize("file", EVERYTHING, ids=name_of)
def test_imports_keep_their_direction(file):
    assert violations(name_of(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("policies/x.py", "import torch\nfrom .batch import Batch\nfrom . import nets", True),
        ("policies/x.py", "from flowhand.contracts.features import Spec", True),
        ("policies/x.py", "from flowhand.control import controller", False),
        ("policies/x.py", "import gymnasium.spaces", False),
        ("policies/x.py", "def main():\n    import hydra", False),
        ("policies/x.py", "if True:\n    from envs.base import Env", False),
        ("policies/x.py", "if TYPE_CHECKING:\n    from envs.base import Env", True),
        ("envs/x.py", "import torch.nn as nn", False),
        ("envs/x.py", "import mujoco, gymnasium", True),
        ("envs/x.py", "from policies import load", False),
        ("flowhand/demos/x.py", "from envs import Env", False),
        ("flowhand/demos/x.py", "from ..contracts.episode import Episode", True),
        ("flowhand/demos/x.py", "from ..control.safety import Safety", False),
        ("flowhand/control/x.py", "import torch", False),
        ("flowhand/control/x.py", "from flowhand.deploy import client", False),
        ("flowhand/deploy/x.py", "from flowhand.control import safety", True),
        ("flowhand/deploy/x.py", "from flowhand import control", True),
        ("flowhand/deploy/client.py", "from flowhand.contracts import features", False),
        ("flowhand/contracts/x.py", "import flowhand.control.safety", False),
        ("flowhand/evaluation/x.py", "from conf import schema", False),
        ("flowhand/__init__.py", "from policies import load", False),
        ("flowhand/__init__.py", "def load():\n    from policies import load", True),
        ("flowhand/commands/x.py", "import hydra, torch, policies, envs\n\ndef f():\n    import wandb", True),
        ("flowhand/commands/train.py", "import wandb", False),
        ("flowhand/pages/video.py", "import av", False),
        ("flowhand/pages/video.py", "from av.video.frame import VideoFrame", False),
        ("flowhand/demos/x.py", "import pyarrow.parquet as pq", False),
        ("flowhand/demos/x.py", "def f():\n    import h5py", True),
        ("conf/verbs/train.py", "import hydra, policies, envs", True),
        ("conf/verbs/train.py", "import torch", False),
        ("benchmarks/x.py", "import torch, policies\nfrom conf import cli", True),
        ("benchmarks/x.py", "import hydra", False),
    ],
)
def test_the_test_itself_sees_a_wrong_import(file, source, allowed):
    assert (violations(file, source) == []) == allowed


def test_no_circles_between_modules():
    names = {name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in SOURCES}
    edges = {}
    for name, file in names.items():
        edges[name] = set()
        for module, function in imported(name_of(file), file.read_text()):
            target = module if module in names else module.rpartition(".")[0]
            # A package is loaded before its modules; that they import each other through it is no circle.
            if not function and target in names and target != name and not name.startswith(f"{target}."):
                edges[name].add(target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_all_source_is_looked_at():
    found = {name_of(file) for file in EVERYTHING}
    assert {
        "train.py",
        "policies/batch.py",
        "policies/nets/mlp.py",
        "envs/base.py",
        "flowhand/demos/native.py",
    } <= found
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert {file for file in tracked.split() if not file.startswith("tests/") and (ROOT / file).exists()} <= found


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file, with their lines."""
    for node in ast.walk(parsed(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(file):
    lines, most = len(file.read_text().splitlines()), MAX_CARRIED_LINES if name_of(file) in CARRIED else MAX_FILE_LINES
    assert lines <= most, f"{name_of(file)} has {lines} lines: which concept wants a file of its own?"
    for name, length in functions(file):
        assert length <= MAX_FUNCTION_LINES, f"{name_of(file)}: {name} has {length} lines"


def test_most_functions_are_short():
    lengths = sorted(length for file in SOURCES for _, length in functions(file))
    assert lengths[int(0.95 * len(lengths))] <= MAX_P95_LINES


def test_folders_stay_small():
    counts = Counter(file.parent for file in SOURCES if file.name != "__init__.py")
    large = {folder.relative_to(ROOT).as_posix(): count for folder, count in counts.items() if count > MAX_FILES}
    assert large == {}, "which of these files want a room?"


@pytest.mark.parametrize("word", ["_target_", "instantiate"])
def test_no_configuration_names_code(word):
    """A configuration, and so a checkpoint, chooses from a table and never says what to import."""
    files = [*EVERYTHING, *sorted((ROOT / "conf").rglob("*.yaml"))]
    assert [name_of(file) for file in files if word in file.read_text()] == []


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "scripts", "misc"])
def test_no_drawer_for_odds_and_ends(name):
    assert [name_of(file) for file in EVERYTHING if name in (file.stem, *file.relative_to(ROOT).parts[:-1])] == []


def loaded(code: str) -> set[str]:
    """The modules that are there after this code has run."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_the_brain_imports_no_world():
    found = {name.split(".")[0] for name in loaded("import policies")}
    assert {"policies", "torch"} <= found
    assert not found & (SIMULATORS | HYDRA | {"envs", "wandb", "matplotlib", "beartype"})


def test_importing_the_worlds_changes_nothing():
    """MuJoCo's backend is chosen by what first imports mujoco, not by an import of a package."""
    code = "import os; before = os.environ.get('MUJOCO_GL'); import envs; assert os.environ.get('MUJOCO_GL') == before"
    assert not {"mujoco", "metaworld"} & {name.split(".")[0] for name in loaded(code)}


@pytest.mark.parametrize("room", ["contracts", "demos", "control", "robots", "deploy", "evaluation"])
def test_rooms_for_robots_need_neither_torch_nor_a_simulator(room):
    names = [name_of(file).removesuffix(".py").replace("/", ".") for file in SOURCES if room_of(name_of(file)) == room]
    found = {name.split(".")[0] for name in loaded("\n".join(f"import {name}" for name in names))}
    assert not found & (SIMULATORS | TORCH | HYDRA | {"policies", "envs", "conf"})
