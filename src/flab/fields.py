"""A field of a settings class that is an option of the command line too: its default and its help, stated once.

The command line builds its options from these fields (:mod:`flab.cli.options`). Messages of the library quote a field as
```name```, which the command line prints as ``--name``.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields
from typing import Any

HELP, EXPERT = "help", "expert"


def setting(default: Any, help: str, *, expert: bool = False) -> Any:
    """Declare a field that users may set; ``expert`` sorts it among the options that few people need."""
    return field(default=default, metadata={HELP: help, EXPERT: expert})


def settings_of(kind: type) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass that were declared by :func:`setting`, by name."""
    found = {one.name: one for one in fields(kind) if HELP in one.metadata}
    assert all(one.default is not MISSING for one in found.values())
    return found
