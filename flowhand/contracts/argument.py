"""A setting as it is typed, in commands that a message tells the user to run."""

from __future__ import annotations

import re
import shlex

PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*", re.ASCII)  # means itself to Hydra and to a shell, unless it is one of these
SPECIAL = {"null", "true", "false", "inf", "nan"}


def argument(name: str, value: object) -> str:
    """`name=value` for a shell that hands it to Hydra, whatever characters the value has."""
    text = str(value)
    if not PLAIN.fullmatch(text) or text.lower() in SPECIAL:
        escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
        escaped = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", escaped)
        text = f"'{escaped}'"
    return shlex.quote(f"{name}={text}")
