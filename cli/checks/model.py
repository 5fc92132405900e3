"""The outcome of one check. `todo` says what to do where it is not well."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from kit.kube import Kube, KubeError

State = Literal["ok", "warn", "fail", "skip"]
MARKS = {"ok": "√", "warn": "‼", "fail": "×", "skip": "-"}  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Outcome:
    id: str
    state: State
    said: str
    todo: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


Check = Callable[[Kube], Awaitable[Sequence[Outcome]]]


def ok(id_: str, said: str) -> Outcome:
    return Outcome(id_, "ok", said)


def fail(id_: str, said: str, todo: str) -> Outcome:
    return Outcome(id_, "fail", said, todo)


def warn(id_: str, said: str, todo: str) -> Outcome:
    return Outcome(id_, "warn", said, todo)


def unreadable(id_: str, what: str, error: KubeError) -> Outcome:
    """The API server did not say; 403 is a matter of rights, anything else of the server."""
    if error.status == 403:
        return Outcome(id_, "warn", f"you may not read {what}", "ask for the right to read it")
    if error.status == 0:
        return fail(
            id_, f"no answer about {what}: {error}", "is the API server reachable from here?"
        )
    return fail(id_, f"{what}: {error}", "see what the API server says")
