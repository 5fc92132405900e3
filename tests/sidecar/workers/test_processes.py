"""What a parent tells its workers, and in which order."""

from types import SimpleNamespace
from typing import Any

from certs.trust.bans import Ban, Bans
from sidecar.workers import wire as w
from sidecar.workers.processes import WorkerProcesses


def test_a_new_worker_knows_who_is_banned_before_it_can_make_a_link() -> None:
    none: Any = None
    crew = WorkerProcesses(none, none, dict, none, none, none)
    crew.svid_came(SimpleNamespace())  # type: ignore[arg-type]
    crew.bans_came(Bans.of([Ban("pod", "uid-1")]))
    told: list[int] = []
    wire = SimpleNamespace(
        send_value=lambda kind, _: told.append(kind), send=lambda kind, _: told.append(kind)
    )
    crew._brief(SimpleNamespace(wire=wire))  # type: ignore[arg-type]
    assert told == [w.BANS, w.SVID]
