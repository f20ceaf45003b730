"""`flowhand VERB ...` runs any verb; `flowhand --help` lists them."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module

VERBS = {
    "collect": "let a world's scripted expert record demonstrations",
    "train": "train a policy from demonstrations, and evaluate it",
    "eval": "evaluate a checkpoint or an export: success rate, records, report page",
    "inspect": "say what recorded demonstrations are: format, features, tasks, what is unusual",
    "calibrate": "calibrate a checkpoint's monitor to a rate of false alarms",
    "export": "write a checkpoint's decision as one file that needs no torch",
    "serve": "serve a checkpoint or an export to robots",
    "control": "control a robot, or a simulated world, in real time",
    "verify": "make every decision of a journal again and compare",
}


def main() -> None:
    """Runs the verb that the command line names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return
    verb = words[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choices: {', '.join(VERBS)}"
        sys.exit(f"error: unknown verb {verb!r}; {hint}")
    sys.argv = [f"flowhand {verb}", *words[1:]]
    import_module(f"flowhand.commands.{verb}").main()


def listing() -> str:
    """What can be done, a line each."""
    lines = [f"  {verb:10s} {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: flowhand VERB [name=value ...]", "", *lines, "", "flowhand VERB --help: what can be set"])


if __name__ == "__main__":
    main()
