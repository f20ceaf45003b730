"""What the world of pages costs: reset, look, act; episodes a second with several tabs; and whether anything leaks.

    python -m benchmarks.web                         # times of a few tasks, episodes a second; a result file
    python -m benchmarks.web leak=10000 state=FILE   # so many episodes, going on from FILE

Times are medians in milliseconds. An episode is that of the task's expert. With several processes each has a browser
with one tab, as the workers of an evaluation have. The leak run counts processes, the memory of the browser, profile
folders and open files as it goes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import envs
from benchmarks import result
from envs.web import WebConfig, WebEnv, chromium
from envs.web.devtools import acquire
from flowhand.contracts.durable import write_whole
from flowhand.contracts.world import WorldError
from flowhand.evaluation.rollout import rollout

TASKS = ("click-test-2", "click-checkboxes", "enter-text", "drag-box", "book-flight-nodelay", "shop")
EPISODES = 20  # of the times of a task
SIDES = ("click-test-2", "book-flight-nodelay")  # needs no reload; needs one
PROCESSES = (1, 4)
KILLED_EVERY = 500  # episodes of the leak run
REPORTED_EVERY = 100


def times(task: str) -> dict[str, float]:
    """Medians of a task's expert's episodes, ms."""
    env = WebEnv(WebConfig(task=task))
    spent: dict[str, list[float]] = {name: [] for name in ("reset", "step", "look", "picture")}

    def timed(name: str, function: Any, *given: Any) -> Any:
        began = time.perf_counter()
        value = function(*given)
        spent[name].append(1000 * (time.perf_counter() - began))
        return value

    stop = np.zeros(env.features.action.size, np.float32)
    for seed in range(EPISODES):
        _, info = timed("reset", lambda seed=seed: env.reset(seed=seed))
        timed("look", env.step, stop)
        timed("picture", env.render)
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            plan = env.expert(info["expert_observation"]) if env.expert else [stop]
            for action in plan[:1] if len(plan) else [stop]:
                *_, terminated, truncated, info = timed("step", env.step, action)
                over = terminated or truncated
    env.close()
    return {name: round(float(np.median(each)), 1) for name, each in spent.items()}


def episodes_per_s(task: str, processes: int, reload: str) -> dict[str, float]:
    """Episodes of the expert a second, without the start of the browsers."""
    make = partial(envs.make, WebConfig(task=task, reload=reload))
    seeds, began = range(100, 100 + 16 * processes), 0.0
    workers = {"workers": "process", "processes": processes} if processes > 1 else {}
    first = time.perf_counter()
    rollout(make, "expert", range(processes), n_envs=processes, **workers)
    started = time.perf_counter() - first
    began = time.perf_counter()
    records = rollout(make, "expert", seeds, n_envs=processes, **workers)
    spent = time.perf_counter() - began
    return {
        "episodes_per_s": round(len(records) / max(spent - started, 1e-9), 2),
        "episodes_per_s_with_start": round(len(records) / spent, 2),
        "successes": sum(record.success for record in records),
        "episodes": len(records),
    }


def processes_of(group: int) -> tuple[int, float]:
    """How many processes of a process group there are, and their resident memory, MiB."""
    count, pages = 0, 0
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                if os.getpgid(int(each.name)) == group:
                    count, pages = count + 1, pages + int((each / "statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
    return count, round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def leak(episodes: int, state: Path) -> dict[str, Any]:
    """Runs episodes of all tasks in turn, four tabs at once, and kills the browser now and then."""
    done = json.loads(state.read_text()) if state.exists() else {"episodes": 0, "killed": 0, "errors": 0, "seen": []}
    worlds = [WebEnv(WebConfig(task=task)) for task in TASKS[:4]]
    while done["episodes"] < episodes:
        seed = done["episodes"]
        env = worlds[seed % len(worlds)]
        try:
            _, info = env.reset(seed=seed)
            if seed and seed % KILLED_EVERY == 0:
                os.kill(env._browser.pid, signal.SIGKILL)
                done["killed"] += 1
            for _ in range(env.config.max_steps):
                plan = env.expert(info["expert_observation"]) if env.expert else []
                *_, terminated, truncated, info = env.step(plan[0] if len(plan) else np.zeros(8, np.float32))
                if terminated or truncated:
                    break
        except WorldError:
            done["errors"] += 1
        done["episodes"] += 1
        if done["episodes"] % REPORTED_EVERY == 0:
            browser = env._browser
            count, memory = processes_of(os.getpgid(browser.pid)) if browser.running else (0, 0.0)
            profiles = len(list(Path(tempfile.gettempdir()).glob(f"{chromium.PREFIX}*")))
            files = len(os.listdir("/proc/self/fd"))
            seen = {"episodes": done["episodes"], "processes": count, "memory_mib": memory, "profiles": profiles}
            done["seen"].append({**seen, "open_files": files})
            write_whole(state, json.dumps(done).encode())
            print(done["seen"][-1], flush=True)
    for env in worlds:
        env.close()
    return done


def main() -> None:
    """Entry point."""
    given = dict(each.split("=", 1) for each in sys.argv[1:])
    if "leak" in given:
        found = leak(int(given["leak"]), Path(given.get("state", "web_leak.json")))
        result.write("web_leak", {"leak": found, "browser": acquire().version}, device="cpu", threads=1)
        return
    content: dict[str, Any] = {"ms": {}, "episodes_per_s": {}}
    for task in TASKS:
        content["ms"][task] = times(task)
        print(task, content["ms"][task], flush=True)
    for task in SIDES:
        for count in PROCESSES:
            for reload in ("auto", "always"):
                name = f"{task}, {count} processes, reload={reload}"
                content["episodes_per_s"][name] = episodes_per_s(task, count, reload)
                print(name, content["episodes_per_s"][name], flush=True)
    content["browser"] = acquire().version
    print(result.write("web", content, device="cpu", threads=1))


if __name__ == "__main__":
    main()
