"""Checkpoint -> success rate with interval, records and report: the verb `eval` (flowhand/commands/eval.py)."""

from flowhand.commands.eval import main

if __name__ == "__main__":
    main()
