"""What verbs that run for long share: a request to stop, and the log of Weights & Biases."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from conf.verbs.eval import WandbConfig


@contextmanager
def wandb_run(config: WandbConfig, out: Path, everything: dict[str, Any]) -> Iterator[Any]:
    """A wandb run whose files stay below `out`, marked as failed when the block raises; None where it is disabled."""
    out.mkdir(parents=True, exist_ok=True)
    if config.mode == "disabled":
        yield None
        return
    import wandb  # only where it is used: it is large, and a machine without it can train and evaluate

    name, mode, quiet = config.name or out.name, cast(Any, config.mode), wandb.Settings(silent=True)
    run = wandb.init(project=config.project, name=name, mode=mode, dir=out, config=everything, settings=quiet)
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def log_results(log: Any, metrics: dict[str, Any], out: Path) -> None:
    """Puts the metrics and the report page into the wandb run, if there is one."""
    if log is not None:
        import wandb

        log.summary.update(metrics)
        log.log({"report": wandb.Html((out / "report.html").read_text())})


class StopRequest:
    """Notes SIGTERM and SIGINT inside its block, so that a step is finished first; a second one ends the program."""

    def __enter__(self) -> StopRequest:
        self.signal = 0
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
