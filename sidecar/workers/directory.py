"""A worker's directory: what its parent has told it, and questions that the parent passes on."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from sidecar.directory import Answer, Found

GIVE_UP_S: Final = 15.0
"""The parent always answers before this; it covers one that is gone."""


class How(Enum):
    """How a question is meant: as `Directory.ask`, the same for a record alone, or as `ask_anew`."""

    ASK = auto()
    FOR_RECORD = auto()
    ANEW = auto()


class WorkerDirectory:
    """A `sidecar.directory.Directory`. `ask_parent(how, key)` sends the question."""

    def __init__(self, ask_parent: Callable[[How, str], None]) -> None:
        self._ask_parent = ask_parent
        self._found: dict[str, Found] = {}
        self._waiting: dict[str, list[Answer]] = {}

    def known(self, key: str) -> Found | None:
        return self._found.get(key)

    def all(self) -> dict[str, Found]:
        return self._found

    def ask(self, key: str, answer: Answer, *, for_record: bool = False) -> None:
        if (already := self._found.get(key)) is not None:
            return answer(already)
        return self._wait(key, answer, How.FOR_RECORD if for_record else How.ASK)

    def ask_anew(self, key: str, answer: Answer) -> None:
        self._wait(key, answer, How.ANEW)

    def _wait(self, key: str, answer: Answer, how: How) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = [answer]
            self._ask_parent(how, key)
            loop = asyncio.get_running_loop()
            loop.call_later(GIVE_UP_S, self.answered, key, self._waiting[key])
        else:
            waiting.append(answer)

    def came(self, key: str, value: Found | None) -> None:
        """The parent's word about a key; None: forgotten."""
        if value is None:
            self._found.pop(key, None)
        else:
            self._found[key] = value

    def answered(self, key: str, only: list[Answer] | None = None) -> None:
        """The parent's word is the answer to those who wait; `only` if they still do."""
        if only is not None and self._waiting.get(key) is not only:
            return
        value = self._found.get(key)
        for answer in self._waiting.pop(key, ()):
            answer(value)
