"""`flowhand VERB ...` runs any verb; `flowhand --help` lists them."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from .contracts.strict import nearest

VERBS = {
    "collect": "let a world's scripted expert record demonstrations",
    "record": "record demonstrations with a person, a policy or an expert, on a robot or in a world",
    "replay": "play a recorded episode again, and compare where it leads",
    "train": "train a policy from demonstrations, and evaluate it",
    "eval": "evaluate a checkpoint or an export: success rate, records, report page",
    "compare": "compare evaluations on the same start states, with paired tests",
    "inspect": "say what recorded demonstrations are: format, features, tasks, what is unusual",
    "convert": "write recorded demonstrations of any format as LeRobot 3.0, or as a store of flowhand",
    "calibrate": "calibrate a checkpoint's monitor to a rate of false alarms",
    "export": "write a checkpoint's decision as one file that needs no torch",
    "serve": "serve a checkpoint or an export to robots",
    "control": "control a robot, or a simulated world, in real time",
    "push": "put a checkpoint, an export or recorded demonstrations on the Hugging Face hub",
    "check": "measure a robot before a policy runs: rates, delays, signs, units, limits",
    "verify": "make every decision of a journal again and compare",
}

PLAIN = ("compare",)  # verbs whose words are no settings

COMPLETION = """_flowhand() {
    mapfile -t COMPREPLY < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" flowhand --complete | tr ' ' '\\n')
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} != *[=./] ]] && COMPREPLY[0]+=" "
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _flowhand flowhand"""


def main() -> None:
    """Runs the verb that the command line names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(listing())
    elif words[0] == "--completion":
        print(COMPLETION)
    elif words[0] == "--complete":
        complete(os.environ.get("COMP_LINE", ""))
    elif words[0] in VERBS:
        run(words[0], words[1:])
    else:
        sys.exit(f"error: unknown verb {words[0]!r}; {nearest(words[0], VERBS)}")


def run(verb: str, words: list[str]) -> None:
    """Runs a verb with these words of the command line.

    Folders called conf, envs or policies where the user works must not stand in for those of this package.
    """
    here, own = os.getcwd(), str(Path(__file__).parents[1])
    if here != own:
        sys.path[:] = [*(path for path in sys.path if os.path.abspath(path) != here), here]
    sys.argv = [f"flowhand {verb}", *words]
    import_module(f"flowhand.commands.{verb}").main()


def complete(line: str) -> None:
    """Prints what the shell may put at the end of the line: verbs, or what Hydra knows of the verb's settings."""
    _, _, rest = line.lstrip().partition(" ")
    verb, space, settings = rest.lstrip().partition(" ")
    if not space:
        print(" ".join(name for name in VERBS if name.startswith(verb)))
    elif verb in VERBS and verb not in PLAIN:
        os.environ["COMP_LINE"] = f"flowhand-{verb} {settings}"  # Hydra takes the first word for the program
        run(verb, ["-sc", "query=bash"])


def listing() -> str:
    """What can be done, a line each."""
    lines = [f"  {verb:10s} {what}" for verb, what in VERBS.items()]
    more = ["flowhand VERB --help: what can be set", 'eval "$(flowhand --completion)": completion in bash']
    return "\n".join(["usage: flowhand VERB [name=value ...]", "", *lines, "", *more])


if __name__ == "__main__":
    main()
