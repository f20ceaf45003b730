"""The documents: their Python runs, their commands compose, what they name exists, and their walkthroughs work."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import envs
import policies
from benchmarks.result import processor
from conf import cli, groups, help
from flowhand.__main__ import VERBS
from flowhand.contracts.features import ChunkConfig
from flowhand.evaluation.records import write_records
from flowhand.evaluation.rollout import rollout
from policies.encoders.state import StateEncoderConfig
from policies.heads import HEADS
from policies.nets.mlp import MLPConfig

ROOT = Path(__file__).parents[1]
WALKTHROUGHS = ("docs/add_a_head.md", "docs/add_an_env.md", "docs/add_a_robot.md")
WITH_BROWSER = ("docs/add_a_page.md",)  # followed by tests/envs/web/test_add_a_page.py
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
PARTS = ("flowhand", "policies", "envs", "conf", "docs", "train.py", "eval.py", "pyproject.toml", *PAGES[:3])
PROGRAMS = {"train.py": "train", "eval.py": "eval"}
OTHERS = ("make", "apt-get", "pip")  # programs that are not ours
MOST_README_LINES = 150

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w/]+\.(?:py|yaml))`[^`]*:$")  # the end of a line that names the file of the block below it
TREE = re.compile(
    r"(?:flowhand|policies|envs|conf|docs|tests|benchmarks|plugins|\.ci)/[\w./-]*|[\w-]+\.(?:py|md|toml|txt)"
)


@dataclass
class Block:
    language: str
    text: str
    line: int  # of its first line of text
    file: str  # that the line before it names, or ""


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, *languages: str) -> list[Block]:
    found, text = [], text_of(page)
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip()
        file = FILE.search(before.splitlines()[-1])
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1], match[2], line, file[1] if file else ""))
    return [block for block in found if block.language in languages]


def inline_code(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page))))


def commands(page: str) -> Iterator[list[str]]:
    for block in blocks(page, "sh"):
        for line in block.text.splitlines():
            yield shlex.split(line, comments=True)


def execute(page: str) -> None:
    """Runs the Python blocks of a page one after the other, as one program."""
    namespace = {"__name__": page}
    for block in blocks(page, "python"):
        if not block.file:
            source = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
            exec(compile(source, page, "exec", dont_inherit=True), namespace)


def compose(words: list[str]) -> None:
    """Composes the configuration that a command line asks for, once for every run of a sweep."""
    if words[0] == "torchrun":
        words = ["python", *itertools.dropwhile(lambda word: word.startswith("-"), words[1:])]
    assert words[0] in ("python", "flowhand"), f"no test understands this command: {words}"
    verb = PROGRAMS[words[1]] if words[0] == "python" else words[1]
    assert verb in VERBS
    if not (ROOT / "conf" / "verbs" / f"{verb}.py").exists():
        return  # a verb without settings
    choices = [[word] for word in words[2:] if not word.startswith(("--", "hydra"))]
    if "--multirun" in words:
        pairs = [word[0].split("=", 1) for word in choices]
        choices = [[f"{key}={value}" for value in values.split(",")] for key, values in pairs]
    for overrides in itertools.product(*choices):
        compose_once(verb, overrides)


@cache
def compose_once(verb: str, overrides: tuple[str, ...]) -> Any:
    """What `cli.compose` gives, where commands share what they chose: Hydra takes a quarter of a second to choose."""
    at = [number for number, word in enumerate(overrides) if word.partition("=")[0] in {"experiment", *groups.TABLES}]
    config = copy.deepcopy(chosen(verb, tuple(overrides[number] for number in at)))
    values = OverridesParser.create().parse_overrides([w for n, w in enumerate(overrides) if n not in at])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return cli.typed(config, overrides)


@cache
def chosen(verb: str, choices: tuple[str, ...]) -> DictConfig:
    """The verb's settings with these components and recipes, before any of them is given a value."""
    groups.register(verb)
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose(verb, list(choices))


def follow(pages: Iterable[str]) -> None:
    """What the reader does after the edits of a walkthrough."""
    for page in pages:
        execute(page)
        for words in commands(page):
            if words[0] in ("python", "flowhand"):
                compose(words)


def insert(original: str, diff: str) -> str:
    """The text with each added line of a diff after the line that precedes it there."""
    lines, place = original.splitlines(), -1
    for line in diff.splitlines():
        if line.startswith("+"):
            place += 1
            lines.insert(place, line[1:])
        else:
            place = lines.index(line[1:], place + 1)
    return "\n".join(lines) + "\n"


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A working directory with what a reader has who has run the demo and the evaluations."""
    monkeypatch.chdir(tmp_path)
    world = envs.MetaWorldConfig(task="reach-v3", max_steps=30)
    env = envs.make(world)
    spec = env.features
    chunk = ChunkConfig()
    config = policies.PolicyConfig(chunk=chunk, encoder=StateEncoderConfig(width=16), net=MLPConfig(width=16))
    policy = policies.Policy(config, spec)
    data = {name: torch.randn(50, feature.size) for name, feature in spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(50, spec.action.size))
    source = policies.Provenance({"kind": "metaworld"}, env.version, env.task_text, "", [], {}, "", 0)
    golden = {name: torch.randn(1, chunk.history, feature.size) for name, feature in spec.observation.items()}
    policies.save("outputs/demo/checkpoint", policy, source, golden, {"step": 0})
    records = rollout(partial(envs.make, world), "expert", range(1_000_000, 1_000_004))
    for name in ("eval-flow", "eval-regression"):
        write_records(f"outputs/{name}/episodes.jsonl", records)
    return tmp_path


RUN_HERE = [page for page in PAGES if blocks(page, "python") and page not in (*WALKTHROUGHS, *WITH_BROWSER)]


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_python_of_a_page_runs(page, workplace):
    execute(page)


def test_the_robot_program_runs_again_beside_what_it_wrote(workplace):
    for count in (1, 2):
        execute("docs/deploy.md")
        assert len(list(workplace.glob("outputs/deploy/*.journal"))) == count


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (*WALKTHROUGHS, *WITH_BROWSER)])
def test_every_setting_of_every_command_exists(page):
    for words in commands(page):
        if words[0] not in OTHERS and "benchmarks." not in " ".join(words[:3]):
            compose(words)


def test_choices_and_values_one_after_the_other_are_what_hydra_composes_at_once():
    words = ("head=diffusion", "head.steps=7", "experiment=web", "++train.steps=3", "out=a-${seed}", "seed=3")
    assert compose_once("train", words) == cli.compose(words)
    for wrong in ("seeds=1", "head=flaw", "seed=x", "~seed", "head.prediction=nothing"):
        told = []
        for way in (compose_once, lambda verb, words: cli.compose(words, verb)):
            with pytest.raises((HydraException, OmegaConfBaseException, ValueError)) as error:
                way("train", (*words, wrong))
            told.append(str(error.value))
        assert told[0] == told[1]


def composes(words: list[str]) -> bool:
    try:
        compose(words)
    except Exception:
        return False
    return True


def test_our_words_for_those_of_other_systems_are_settings():
    """Every setting of the right column composes by itself, or with the components that it belongs to."""
    rows = re.findall(r"^\|.*\| (.*) \|$", text_of("docs/coming_from.md"), re.MULTILINE)
    codes = {code for row in rows for code in re.findall(r"`([^`]+)`", row)}
    settings = [code for code in sorted(codes) if re.fullmatch(r"(?:[a-z_.]+=[^\s.]\S*\s?)+", code)]
    assert len(settings) > 30
    for code in settings:
        verb = "eval.py" if "checkpoint=" in code else "train.py"
        beside = ([], ["head=diffusion"], ["net=unet1d"])
        assert any(composes(["python", verb, *more, *code.split()]) for more in beside), code


def test_a_setting_that_does_not_exist_is_found():
    with pytest.raises(Exception, match="stepz"):
        compose(["python", "train.py", "train.stepz=3"])
    for program in (["python", "eval.py"], ["flowhand", "serve"], ["flowhand", "export"]):
        compose([*program, "checkpoint=x", "head.steps=3"])
        with pytest.raises(Exception, match="prediction"):  # which is a setting, but of the training
            compose([*program, "checkpoint=x", "head.prediction=data"])
    with pytest.raises(ValueError, match="prediction_horizon"):
        compose(["python", "train.py", "--multirun", "chunk.execution_horizon=8,99"])


@cache
def known_keys() -> set[str]:
    keys = {"experiment", *groups.TABLES}
    for verb in (verb for verb in VERBS if (ROOT / "conf" / "verbs" / f"{verb}.py").exists()):
        chosen = groups.choices(verb)
        found = {key for key, _, _ in help.settings(groups.root(verb), chosen)}
        for group in chosen:
            for kind in groups.table(group):
                found |= {key for key, _, _ in help.settings(groups.root(verb), {**chosen, group: kind})}
        keys |= found | {part for key in found for part in (key.partition(".")[0], ".".join(key.split(".")[:2]))}
    return keys


@pytest.mark.parametrize("page", PAGES)
def test_everything_a_page_names_exists(page):
    created = {each.file for made in (*WALKTHROUGHS, *WITH_BROWSER) for each in blocks(made, "python")}
    for code in inline_code(page) - created:
        if TREE.fullmatch(code):
            assert (ROOT / code).exists(), f"{page} names the file {code}"
        if setting := re.match(r"\+?([a-z_]+(?:\.[a-z_]+)?)=", code):
            assert setting[1] in known_keys(), f"{page} names the setting {code}"
        name = re.match(r"(?:flowhand|policies|envs|conf)(?:\.\w+)+", code)
        if name and name[0] not in known_keys():
            pkgutil.resolve_name(name[0])
        if verb := re.match(r"flowhand ([a-z]+)", code):
            assert verb[1] in VERBS, f"{page} names {code}"
        if module := re.match(r"python -m ([\w.]+)", code):
            assert (ROOT / module[1].replace(".", "/")).with_suffix(".py").exists(), f"{page} names {code}"


def test_the_fields_that_can_be_changed_are_those_of_the_heads():
    rows = re.findall(r"^\| (`\w+`.*?) \| (`head\..*|none) \|$", text_of("docs/heads.md"), re.MULTILINE)
    told = {head: re.findall(r"head\.(\w+)", row) for heads, row in rows for head in re.findall(r"\w+", heads)}
    assert {"flow", "diffusion", "regression"} <= set(told)
    assert told == {head: list(HEADS[head][0].sampling) for head in told}


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    used = {words[1] for words in commands(page) if words[0] == "make"}
    used |= {code.split()[1] for code in inline_code(page) if code.startswith("make ")}
    assert used <= targets


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if file.suffix != ".md":
            continue
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{page} links to {target}"


def test_the_readme_stays_short():
    assert len(text_of("README.md").splitlines()) <= MOST_README_LINES


def test_the_index_has_one_line_for_every_page():
    lines = [line for line in text_of("docs/index.md").splitlines() if line.startswith("- ")]
    targets = [re.findall(r"\]\(([^)#]+)\)", line) for line in lines]
    assert all(len(found) == 1 for found in targets), "a line of docs/index.md names one page"
    listed = [os.path.normpath(f"docs/{found[0]}") for found in targets]
    assert len(set(listed)) == len(listed)
    assert {*PAGES, "plugins/lerobot/README.md", "benchmarks/gpu/README.md"} - {"docs/index.md"} == set(listed)


@pytest.mark.parametrize("page", PAGES)
def test_figures_name_their_processor(page):
    """A paragraph that names a result file names what computed it: times elsewhere are others."""
    for paragraph in re.split(r"\n\s*\n", text_of(page)):
        for file in re.findall(r"benchmarks/results/[\w.-]+\.json", paragraph):
            name = processor(json.loads((ROOT / file).read_text())["hardware"])
            assert name in " ".join(paragraph.split()), f"{page}: {file} was measured on an {name}"


def test_every_figure_of_time_stands_near_its_processor():
    """Whatever is measured in samples or milliseconds stands in a section that names a processor."""
    figure = re.compile(r"\d samples/s|\d ms\b|\d times slower")
    for page in ("README.md", *DOCS):
        for section in re.split(r"^#+ |^(?=\*\*)", text_of(page), flags=re.MULTILINE):
            if figure.search(FENCE.sub("", section)):
                assert re.search(r"Intel Xeon|AMD EPYC|NVIDIA", section), f"{page}: {section[:60]}"


def test_no_number_is_left_open():
    assert re.findall(r"@@\w*@@", "".join(map(text_of, PAGES))) == []


def test_the_walkthroughs_work_when_followed_literally(tmp_path):
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "tests").mkdir()
    shutil.copy(__file__, tmp_path / "tests")
    edits = [block for page in WALKTHROUGHS for block in blocks(page, "python", "diff") if block.file]
    assert [block.language for block in edits] == ["python", "diff"] * 3
    for block in edits:
        file = tmp_path / block.file
        assert file.exists() == (block.language == "diff"), f"{block.file} is an example that became a part"
        file.write_text(insert(file.read_text(), block.text) if block.language == "diff" else block.text)

    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    for check in (["check"], ["format", "--check"]):
        files = [block.file for block in edits if block.file.endswith(".py")]
        result = run([sys.executable, "-m", "ruff", *check, "--no-cache", *files])
        assert result.returncode == 0, result.stdout + result.stderr
    result = run([sys.executable, "-m", "tests.test_docs"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    follow(WALKTHROUGHS)
