"""Packages of the user that register worlds when they are imported. Worker processes import them too.

Only a person names them, on the command line or in Python: no file does, since importing a package runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

_imported: list[str] = []


def import_modules(names: Iterable[str]) -> None:
    """Import the packages, here and in every worker that is started from now on.

    Raises:
        ValueError: a name that no package can have, or a package that cannot be imported.
    """
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"modules holds {name!r}, expected names as an import has them, such as gym_pusht")
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(f"modules={name} cannot be imported ({error}); install it, or correct the name") from error
        if name not in _imported:
            _imported.append(name)


def imported_modules() -> list[str]:
    """Those that `import_modules` has imported in this process."""
    return list(_imported)
