"""A worker's directory: what its parent has told it, and questions that the parent passes on."""

import asyncio
from collections.abc import Callable
from typing import Final

from sidecar.directory import Answer, Found

GIVE_UP_S: Final = 15.0
"""The parent always answers before this; it covers one that is gone."""


class WorkerDirectory:
    """A `sidecar.directory.Directory`. `ask_parent(key, anew)` sends the question."""

    def __init__(self, ask_parent: Callable[[str, bool], None]) -> None:
        self._ask_parent = ask_parent
        self._found: dict[str, Found] = {}
        self._waiting: dict[str, list[Answer]] = {}

    def known(self, key: str) -> Found | None:
        return self._found.get(key)

    def all(self) -> dict[str, Found]:
        return self._found

    def ask(self, key: str, answer: Answer) -> None:
        if (already := self._found.get(key)) is not None:
            return answer(already)
        return self._wait(key, answer, anew=False)

    def ask_anew(self, key: str, answer: Answer) -> None:
        self._wait(key, answer, anew=True)

    def _wait(self, key: str, answer: Answer, *, anew: bool) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = [answer]
            self._ask_parent(key, anew)
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
