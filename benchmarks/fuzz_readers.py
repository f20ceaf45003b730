"""Hostile data sets of every format by the hundred thousand: read, examined and converted, or refused in one line.

    python -m benchmarks.fuzz_readers [--cases N] [--seed N] [--only FORMAT,FORMAT] [--case I] [--out FILE]

A case changes one or two files of a small good set (`benchmarks/fuzz_sets.py`), opens it and reads all of it. What is
taken must be as its specification says, and finite. Nothing outside the set is opened by a path in it, and nothing but
the target is written. Cases run in processes of their own, which may crash or hang: that is a finding too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_inputs import one_line
from benchmarks.fuzz_onnx import watch
from benchmarks.fuzz_sets import MAKERS, SECRET, changed, no_file
from benchmarks.result import write
from flowhand.demos.conversion.convert import How, convert
from flowhand.demos.conversion.plan import Source, planned
from flowhand.demos.formats import open_dataset
from flowhand.demos.health.examine import examine

SHARES = {"lerobot3": 0.3, "lerobot2": 0.25, "robomimic": 0.15, "minari": 0.1, "zarr": 0.2}  # of the cases
BATCH = 500  # cases of one process
SLOW_S = 600.0  # of one case: it hangs, whatever else the machine does
MOST_BYTES = 2**33  # of address space: who asks for more gets a MemoryError, and not the machine's memory
GROWTH_MIB = 64.0  # that a process may need at the end of its cases more than after its first tenth
THOROUGH = 0.03  # of the sets that are taken, examined with all frames and converted too


class Fuzz:
    """The cases of one format in a folder of their own."""

    def __init__(self, name: str, folder: Path, seed: int):
        self.name, self.folder, self.seed = name, folder, seed
        self.root = folder / "set"
        if not self.root.exists():
            MAKERS[name](self.root)
        files = sorted(str(file.relative_to(self.root)) for file in self.root.rglob("*") if file.is_file())
        self.good = {file: (self.root / file).read_bytes() for file in files}
        self.path = self.root / "set.hdf5" if name == "robomimic" else self.root
        (folder / SECRET).write_bytes(self.good.get("data/chunk-000/file-000.parquet", b"secret" * 20))
        self.touched = watch(folder / SECRET)

    def case(self, number: int) -> str:
        """Runs one case and says how it ended.

        Raises:
            Exception: of any kind: a finding.
        """
        rng = random.Random(f"{self.seed}/{self.name}/{number}")
        spoilt = rng.sample(list(self.good), min(len(self.good), rng.choice((1, 1, 1, 2))))
        for name in spoilt:
            file = self.root / name
            file.unlink()
            if rng.random() < 0.04:
                no_file(rng, file)
            else:
                file.write_bytes(changed(rng, name, self.good[name], self.folder))
        while self.touched():
            pass  # what making the case has opened
        try:
            ended = self._used(rng)
            assert not self.touched(), "a file outside the data set was opened"
        finally:
            for name in spoilt:
                file = self.root / name
                if file.is_dir() and not file.is_symlink():
                    file.rmdir()
                else:
                    file.unlink(missing_ok=True)
                file.write_bytes(self.good[name])
        return ended

    def _used(self, rng: random.Random) -> str:
        try:
            data = open_dataset(self.path)
        except ValueError as error:
            one_line(str(error))
            return "refused"
        refused = 0
        for episode in range(min(len(data), 8)):
            try:
                got = data.read(episode)
            except ValueError as error:
                one_line(str(error))
                refused += 1
                continue
            got.validate(data.spec)
            assert len(got) == data.lengths[episode]
            assert all(np.isfinite(v).all() for v in got.observation.values() if v.dtype.kind == "f")
        if rng.random() < THOROUGH:
            self._thorough(data)
        return "read in part" if refused else "read"

    def _thorough(self, data: Any) -> None:
        """Examined and converted."""
        try:
            for found in examine(data, "all").findings:
                one_line(found.line())
        except ValueError as error:
            one_line(str(error))
        target, before = self.folder / "new", set(os.listdir(self.folder))
        try:
            convert(planned([Source("set", data)]), target, How("native"))
        except ValueError as error:
            one_line(str(error))
            assert not target.exists(), "a target of a conversion that failed"
        written = set(os.listdir(self.folder)) - before
        assert written <= {"new"} or all(name.endswith(".partial") for name in written), f"written: {written}"
        for name in written:
            shutil.rmtree(self.folder / name)


def batch(name: str, numbers: range, seed: int, folder: Path) -> None:
    """Runs cases in this process, which ends; what happened stands in the folder."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    fuzz, outcomes, findings, early = Fuzz(name, folder / "work", seed), Counter(), [], 0.0
    progress = folder / "progress"
    for done, number in enumerate(numbers):
        progress.write_text(str(number))
        if done == len(numbers) // 10:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        try:
            outcomes[fuzz.case(number)] += 1
        except Exception as error:  # every kind is a finding
            findings.append(f"{number}: {type(error).__name__}: {error}"[:300])
            (folder / f"traceback_{number}").write_text(traceback.format_exc())
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - early
    if growth > GROWTH_MIB and len(numbers) > 1:
        findings.append(f"{numbers.start}: memory grew by {growth:.0f} MiB")
    content = {"outcomes": dict(outcomes), "findings": findings, "growth_mib": growth}
    (folder / "done.json").write_text(json.dumps(content))


def guarded(name: str, numbers: range, seed: int, folder: Path) -> dict[str, Any]:
    """A batch in a process of its own; a crash or a hang is a finding, and the rest of the batch is not run."""
    folder.mkdir(parents=True)
    (folder / "work").mkdir()
    child = os.fork()
    if not child:
        try:
            batch(name, numbers, seed, folder)
        except BaseException:
            (folder / "broken").write_text(traceback.format_exc())
        os._exit(0)
    last, since = "", time.monotonic()
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.05)
        now = (folder / "progress").read_text() if (folder / "progress").exists() else ""
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > SLOW_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"outcomes": {}, "findings": [f"{last}: hangs for more than {SLOW_S:g} s"], "growth_mib": 0.0}
    if (folder / "done.json").exists():
        return json.loads((folder / "done.json").read_text())
    broken = (folder / "broken").read_text()[-1500:] if (folder / "broken").exists() else "the process crashed"
    return {"outcomes": {}, "findings": [f"{last}: {broken}"], "growth_mib": 0.0}


def fuzz(name: str, numbers: range, seed: int) -> dict[str, Any]:
    """All cases of a format, batch after batch."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    growth, started = 0.0, time.perf_counter()
    for first in range(numbers.start, numbers.stop, BATCH):
        part = range(first, min(first + BATCH, numbers.stop))
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            result = guarded(name, part, seed, Path(folder) / "batch")
            for file in sorted((Path(folder) / "batch").glob("traceback_*"))[: max(0, 3 - len(findings))]:
                print(f"{name} --seed {seed} --case {file.name[10:]}\n{file.read_text()}", flush=True)
        outcomes.update(result["outcomes"])
        findings += result["findings"]
        growth = max(growth, result["growth_mib"])
    done = sum(outcomes.values())
    rate = round(done / (time.perf_counter() - started), 1)
    return {"cases": done, "outcomes": dict(outcomes), "findings": len(findings), "examples": findings[:10],
            "cases_per_s": rate, "growth_mib": round(growth, 1)}  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES))
    parser.add_argument("--case", type=int, help="run this case of the format alone")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.only.split(","):
        count = round(arguments.cases * SHARES[name])
        numbers = range(count) if arguments.case is None else range(arguments.case, arguments.case + 1)
        results[name] = fuzz(name, numbers, arguments.seed)
        print(name, json.dumps(results[name]), flush=True)
        if arguments.case is None:  # what is done is kept, whatever comes
            total = sum(result["cases"] for result in results.values())
            content = {"cases": total, "seed": arguments.seed, "formats": results}
            print(
                f"{total} cases: {write('fuzz_readers', content, arguments.out, device='cpu', threads=1)}", flush=True
            )
    sys.exit(any(result["findings"] for result in results.values()))


if __name__ == "__main__":
    main()
