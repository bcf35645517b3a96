"""The cases: each measures, and makes its table of what it, or an earlier run, has measured."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class Context:
    """What a case is given: the tools, and how long and how often to run them."""

    paths: dict
    seconds: int
    rounds: int
    given: bool = False  # our binaries were, and may be of another commit


@dataclasses.dataclass
class Case:
    """One case. Figures are what goes into raw.json."""

    name: str
    tools: list
    measure: Callable[[Context], dict]
    lines: Callable[[dict], list]
