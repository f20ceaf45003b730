"""The house keeps its shape: who may import whom, how files are cut, and what no file may say. Read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [name for name in ("policies", "envs", "demos", "deploy") if (ROOT / name).is_dir()]
SCRIPTS = [ROOT / "train.py", ROOT / "eval.py"]
SOURCES = [*SCRIPTS, *(file for name in (*PACKAGES, "conf") for file in sorted((ROOT / name).rglob("*.py")))]
EVERYTHING = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))]

HYDRA = {"hydra", "omegaconf"}
WANDB = {"wandb"}
LAZY = {"wandb", "av"}  # large, and not needed for much: a machine may be without them
FORBIDDEN = {
    "policies": {"gymnasium", "mujoco", "envs", "demos", "deploy"},
    "envs": {"torch", "policies", "demos", "deploy"},
    "demos": {"torch", "policies", "deploy"},
}
EXCEPTIONS = {  # files that may break one of the rules above, and which
    "envs/gpu_simulation.py": {"torch"},
    "demos/store.py": {"policies"},  # policies.spec alone: what training takes is defined once
}
CARRIED = {f"deploy/{name}.py" for name in ("client", "safety", "axis", "workspace")}  # to a robot, without the rest
TORCH_FREE = CARRIED | {f"deploy/{name}.py" for name in ("artifact", "runner", "self_contained")}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, str]]:
    """(imported top-level module, name of the outermost function around it or ""), relative imports left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield (node.module or "").split(".")[0], inside
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(node, inside or (node.name if function else ""))


def violations(file: str, source: str) -> list[str]:
    """What a file imports that its place forbids."""
    package = file.split("/")[0] if "/" in file else ""
    found = []
    for module, function in imports(ast.parse(source)):
        forbidden = FORBIDDEN.get(package, set()) - EXCEPTIONS.get(file, set())
        if file in TORCH_FREE:
            forbidden = forbidden | {"torch"}
        if file in CARRIED:
            forbidden = forbidden | {"policies", "envs", "demos"}
        if file not in ("train.py", "eval.py"):
            forbidden = forbidden | WANDB
            entry = package in ("envs", "demos", "deploy") and function == "main"  # hydra belongs to the command line
            if package != "conf" and not entry:
                forbidden = forbidden | HYDRA | ({"conf"} if package in PACKAGES else set())
        if module in forbidden:
            found.append(f"{file} imports {module}")
        if module in LAZY and not function:
            found.append(f"{file} imports {module} at its top; import it in the function that uses it")
        if module == package and package in PACKAGES:
            found.append(f"{file} imports its own package {module} by name; imports inside a package are relative")
    return found


@pytest.mark.parametrize("file", EVERYTHING, ids=name_of)
def test_imports_keep_their_direction(file):
    assert violations(name_of(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("policies/x.py", "import torch\nfrom .batch import Spec\nfrom . import nets", True),
        ("policies/x.py", "import gymnasium.spaces", False),
        ("policies/x.py", "def main():\n    import hydra", False),
        ("policies/x.py", "from omegaconf import DictConfig", False),
        ("policies/x.py", "if True:\n    from envs.base import Env", False),
        ("policies/x.py", "class A:\n    def f(self):\n        import deploy", False),
        ("policies/nets/x.py", "from policies.batch import Spec", False),
        ("envs/x.py", "import torch.nn as nn", False),
        ("envs/x.py", "import mujoco, gymnasium, wandb", False),
        ("demos/x.py", "from envs import Env", True),
        ("demos/x.py", "import hydra\n\ndef main(): pass", False),
        ("demos/x.py", "def main():\n    def run():\n        import hydra", True),
        ("demos/x.py", "def other():\n    import hydra", False),
        ("demos/x.py", "from conf import schema", False),
        ("demos/x.py", "def main():\n    import torch", False),
        ("deploy/server.py", "from policies import load\nimport torch", True),
        ("deploy/monitor.py", "from policies import load", True),
        ("deploy/client.py", "from policies import load", False),
        ("deploy/client.py", "import torch", False),
        ("deploy/runner.py", "from policies.spec import Spec", True),
        ("deploy/runner.py", "import torch", False),
        ("deploy/safety.py", "try:\n    import torch\nexcept ImportError:\n    torch = None", False),
        ("conf/schema.py", "import hydra, policies, envs", True),
        ("conf/schema.py", "import wandb", False),
        ("train.py", "import hydra, torch, policies, envs\n\ndef f():\n    import wandb", True),
        ("train.py", "import wandb", False),
        ("envs/video.py", "import av", False),
        ("envs/video.py", "from av.video.frame import VideoFrame", False),
        ("benchmarks/x.py", "import torch, policies, train\nfrom conf import schema", True),
        ("benchmarks/x.py", "import hydra", False),
    ],
)
def test_the_test_itself_sees_a_wrong_import(file, source, allowed):
    assert (violations(file, source) == []) == allowed


def test_all_source_is_looked_at():
    found = {name_of(file) for file in EVERYTHING}
    assert {"train.py", "policies/batch.py", "policies/nets/mlp.py", "envs/base.py", "demos/store.py"} <= found
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert {file for file in tracked.split() if not file.startswith("tests/") and (ROOT / file).exists()} <= found


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(file):
    source = file.read_text()
    lines = len(source.splitlines())
    assert lines <= MAX_FILE_LINES, f"{name_of(file)} has {lines} lines: which concept wants a file of its own?"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name_of(file)}: {node.name} has {length} lines"


@pytest.mark.parametrize("word", ["_target_", "instantiate"])
def test_no_configuration_names_code(word):
    """A configuration, and so a checkpoint, chooses from a table and never says what to import."""
    files = [*EVERYTHING, *sorted((ROOT / "conf").rglob("*.yaml"))]
    assert [name_of(file) for file in files if word in file.read_text()] == []


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "scripts", "misc"])
def test_no_drawer_for_odds_and_ends(name):
    assert [name_of(file) for file in EVERYTHING if name in (file.stem, *file.relative_to(ROOT).parts[:-1])] == []


def test_importing_the_brain_imports_no_world():
    code = "import sys, policies; policies.load; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"policies", "torch"} <= loaded
    unwanted = FORBIDDEN["policies"] | HYDRA | WANDB | {"metaworld", "matplotlib", "beartype"}
    assert loaded & unwanted == set()


def test_the_store_takes_only_the_definition_of_features_from_the_brain():
    code = (
        "import sys, demos; print(*(name for name in sys.modules if name.partition('.')[0] in ('policies', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"policies", "policies.spec"}


def test_the_controller_needs_no_torch():
    code = "import sys, policies.controller; policies.Controller; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"policies", "numpy"} <= set(done.stdout.split())
    assert "torch" not in set(done.stdout.split())
