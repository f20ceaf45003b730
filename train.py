"""Demonstrations -> checkpoint -> success rate: the verb `train` (flowhand/commands/train.py)."""

from flowhand.commands.train import main

if __name__ == "__main__":
    main()
