"""The cases. Each case measures figures, and makes a table of these or of earlier figures."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class Context:
    """The tools, and the duration and number of their runs."""

    paths: dict
    seconds: int
    rounds: int
    binaries_given: bool = False  # the binaries were not built here and may be of another commit


@dataclasses.dataclass
class Case:
    """One case. Its figures are stored in raw.json."""

    name: str
    tools: list
    measure: Callable[[Context], dict]
    build_lines: Callable[[dict], list]
