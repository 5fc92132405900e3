"""Carries a rotation of the root through: looks, asks `certs.rotation`, writes, tells.

Every CA runs this. One of them acts at a time (the first by name of those that live), so that status
and events have one voice; that two might act at once for a moment is harmless, since every step is one
write, guarded by the state that it was decided on.
"""

import asyncio
import datetime as dt
import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256

from certs.authority.keyring import Keyring, issuer_of, roots_of
from certs.authority.keys import AuthorityRefused, KeyFiles, create_root
from certs.authority.store import read_secret_files
from certs.names import ROTATION_CONFIG_MAP
from certs.records import Entry, merged
from certs.rotation import (
    Move,
    Phase,
    RotationOrder,
    RotationRefused,
    Seen,
    Timing,
    decide,
    gates,
    is_due,
)
from certs.server.cluster_state import ClusterState
from certs.server.events import Events
from certs.server.keeper import KeyKeeper, prove
from certs.server.ledger import Ledger
from certs.server.publish import BundlePublisher
from kit.backoff import Backoff
from kit.clock import Clock, monotonic
from kit.kube import Kube, KubeError

_ASKED_AT_ONCE = 200
"""Pods that one look asks the API server for."""
_TICKS_APART = 10
"""Looks between two questions for the same pod."""
_log = logging.getLogger(__name__)
Told = Callable[[str, str, str], None]
"""Phase, who asked, and what was said: a step of a rotation, for the traces."""


class Rotator:
    def __init__(
        self,
        *,
        kube: Kube,
        namespace: str,
        trust_domain: str,
        replica: str,
        keeper: KeyKeeper,
        cluster: ClusterState,
        ledger: Ledger,
        publisher: BundlePublisher,
        events: Events,
        told: Told,
        clock: Clock,
        timing: Timing,
        every: dt.timedelta = dt.timedelta(0),
        import_secret: str = "",
        tick_s: float = 1.0,
    ) -> None:
        self._kube, self._namespace, self._trust_domain = kube, namespace, trust_domain
        self._replica, self._keeper, self._cluster = replica, keeper, cluster
        self._ledger, self._publisher, self._events = ledger, publisher, events
        self._told, self._clock, self._timing, self._every = told, clock, timing, every
        self._import_secret, self._tick_s = import_secret, tick_s
        self._maps = f"/api/v1/namespaces/{namespace}/configmaps"
        self._gone: set[str] = set()
        self._asked_at: dict[str, float] = {}
        """By pod UID, monotonic: when the API server last said that it is still there."""

    async def run(self) -> None:
        """Look every `tick_s` until cancelled."""
        backoff = Backoff(first_s=self._tick_s, longest_s=15.0)
        await self._cluster.wait_synced()
        while True:
            wait_s = self._tick_s
            try:
                await self.step()
                backoff.reset()
            except (KubeError, OSError, AuthorityRefused) as e:
                wait_s = backoff.next_s()
                _log.warning("the rotation was not looked at", extra={"error": str(e)})
            await asyncio.sleep(wait_s)

    async def step(self) -> None:
        """Look once, and take the step that is due. Raises KubeError, OSError, AuthorityRefused."""
        if not self._leads():
            return
        keyring = self._keeper.keyring
        order = self._cluster.order
        if order is not None and order.id == keyring.order_done:
            order = None
        seen = await self._look(keyring)
        imported, due = await self._imported(keyring), ""
        if imported is not None:
            if self._roots_of(imported) == self._roots_of(keyring.current):
                await self._reissued(keyring, imported)
                return
            due = f"Secret {self._import_secret}"
        elif self._due(keyring):
            due = "schedule"
        await self._move(keyring, order, seen, due, imported)
        if self._keeper.keyring is not keyring:
            seen = await self._look(self._keeper.keyring)
        await self._tell_status(seen)

    async def _move(
        self,
        keyring: Keyring,
        order: RotationOrder | None,
        seen: Seen,
        due: str,
        imported: KeyFiles | None,
    ) -> None:
        if self._import_secret and order is not None and order.action == "start":
            said = f"the signer comes from Secret {self._import_secret}: replace that"
            await self._keeper.replace(keyring.answered(order.id, said), keyring)
            return
        try:
            move = decide(keyring.rotation, seen, self._timing, order, due)
        except RotationRefused as e:
            assert order is not None
            await self._keeper.replace(keyring.answered(order.id, f"refused: {e}"), keyring)
            return
        coming = None
        if move.moves and move.to is Phase.PUBLISHING:
            coming = imported or create_root(self._trust_domain, seen.now)
        then = keyring.moved(move, coming)
        if order is not None:
            then = then.answered(order.id, move.said or "noted")
        if then != keyring and await self._keeper.replace(then, keyring) and move.moves:
            await self._tell(move, then)

    async def _tell(self, move: Move, keyring: Keyring) -> None:
        phase = move.to.value if move.to else "ended"
        by = move.rotation.by if move.rotation else ""
        _log.info("root rotation", extra={"phase": phase, "by": by, "said": move.said})
        self._told(phase, by, move.said)
        await self._events.tell("RootRotation", move.said)

    # --- what there is to see ---------------------------------------------------------------

    def _leads(self) -> bool:
        now = self._clock()
        living = {book.replica for book in self._cluster.books.values() if book.lives(now)}
        return self._replica <= min(living, default=self._replica)

    def living_leaves(self) -> dict[str, Entry]:
        """Of every CA's book."""
        books = [b.entries for b in self._cluster.books.values() if b.replica != self._replica]
        found = merged([self._ledger.entries(), *books], self._clock())
        return {uid: entry for uid, entry in found.items() if uid not in self._gone}

    async def _look(self, keyring: Keyring) -> Seen:
        now, rotation = self._clock(), keyring.rotation
        if rotation is None:
            self._gone.clear()
            self._asked_at.clear()
            return Seen(now)
        leaves = self.living_leaves()
        lagging = [e for e in leaves.values() if e.acked < keyring.generation]
        behind = tuple(
            book.replica
            for book in self._cluster.books.values()
            if book.replica != self._replica
            and book.lives(now)
            and (
                book.generation < keyring.generation
                or book.issuer != self._keeper.authority.issuer_sha256
            )
        )
        other = self._keeper.authority.issuer_sha256
        return Seen(
            now=now,
            unacknowledged=await self._still_there(lagging),
            unpublished=self._publisher.unpublished(),
            behind=behind,
            old_leaves=tuple(e.pod for e in leaves.values() if e.issuer not in (other, "")),
        )

    async def _still_there(self, lagging: list[Entry]) -> tuple[str, ...]:
        """Those whose pod exists: a pod that is gone will never acknowledge anything."""
        found, asked, now = [], 0, monotonic()
        for entry in lagging:
            # A node that is away with its pods may keep hundreds lagging for hours: neither all of
            # them at each look, nor the same ones only.
            again = self._asked_at.get(entry.pod_uid, -math.inf) + _TICKS_APART * self._tick_s
            if asked == _ASKED_AT_ONCE or now < again:
                found.append(entry.pod)
                continue
            asked += 1
            self._asked_at[entry.pod_uid] = now
            namespace, _, name = entry.pod.partition("/")
            try:
                pod = await self._kube.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
                phase = (pod.get("status") or {}).get("phase")
                gone = pod["metadata"]["uid"] != entry.pod_uid or phase in ("Succeeded", "Failed")
            except KubeError as e:
                if e.status != 404:
                    raise
                gone = True
            if gone:
                self._gone.add(entry.pod_uid)
                self._ledger.forget(entry.pod_uid)
            else:
                found.append(entry.pod)
        return tuple(found)

    def _roots_of(self, files: KeyFiles) -> set[bytes]:
        return set(roots_of(files, self._trust_domain))

    def _due(self, keyring: Keyring) -> bool:
        if keyring.rotation is not None or self._import_secret:
            return False
        root = issuer_of(keyring.current)
        return is_due(
            root.not_valid_before_utc, root.not_valid_after_utc, self._clock(), self._every
        )

    # --- a signer that somebody else renews ---------------------------------------------------

    async def _imported(self, keyring: Keyring) -> KeyFiles | None:
        """The signer in the Secret of cert-manager or whoever, if it is new to us and works."""
        if not self._import_secret or keyring.rotation is not None:
            return None
        where = f"Secret {self._namespace}/{self._import_secret}"
        try:
            secret = await self._kube.get(
                f"/api/v1/namespaces/{self._namespace}/secrets/{self._import_secret}"
            )
            files = read_secret_files(secret, where)
            if issuer_of(files) == issuer_of(keyring.current):
                return None
            # Before it is stored: as a signer that comes it would only be tried when it is to sign.
            prove(Keyring(files).authority(self._trust_domain, self._clock()), self._clock())
        except KubeError as e:
            if e.status != 404:
                raise
            await self._events.warn("CaKeysRefused", f"{where} is not there, the old one signs on")
            return None
        except AuthorityRefused as e:
            await self._events.warn("CaKeysRefused", f"{where} is not used: {e}")
            return None
        return files

    async def _reissued(self, keyring: Keyring, files: KeyFiles) -> None:
        """A new intermediate under the same roots, which everybody knows: it may sign at once."""
        if await self._keeper.replace(replace(keyring, current=files), keyring):
            text = f"the signer of Secret {self._import_secret} was replaced under the same root"
            self._told("reissued", f"Secret {self._import_secret}", text)
            await self._events.tell("SignerReplaced", text)

    # --- what is told -----------------------------------------------------------------------

    async def _tell_status(self, seen: Seen) -> None:
        status = describe(self._keeper.keyring, seen, self._timing)
        text = json.dumps(status, sort_keys=True)
        if text == self._cluster.status:
            return
        body = {"data": {"status": text}}
        try:
            await self._kube.patch(f"{self._maps}/{ROTATION_CONFIG_MAP}", body)
        except KubeError as e:
            if e.status != 404:
                raise
            metadata = {"name": ROTATION_CONFIG_MAP, "namespace": self._namespace}
            await self._kube.create(
                self._maps, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **body}
            )


def describe(keyring: Keyring, seen: Seen, timing: Timing) -> dict[str, Any]:
    """The rotation as `podlink rotate root --status` shows it. Holds no secret."""
    rotation = keyring.rotation
    signers = [("signs", keyring.current)]
    if keyring.other is not None and rotation is not None:
        signers.append(("comes" if rotation.phase is Phase.PUBLISHING else "goes", keyring.other))
    waits = gates(rotation, seen, timing) if rotation else ()
    return {
        "phase": rotation.phase.value if rotation else "",
        "since": rotation.since.isoformat() if rotation else "",
        "by": rotation.by if rotation else "",
        "automatic": rotation.automatic if rotation else False,
        "forced": sorted(rotation.forced) if rotation else [],
        "generation": keyring.generation,
        "waits": [{"gate": g.name, "text": g.text, "names": list(g.names)} for g in waits],
        "signers": [_signer(role, files) for role, files in signers],
        "order_done": keyring.order_done,
        "order_said": keyring.order_said,
    }


def _signer(role: str, files: KeyFiles) -> dict[str, str]:
    cert = issuer_of(files)
    return {
        "role": role,
        "subject": cert.subject.rfc4514_string(),
        "sha256": cert.fingerprint(SHA256()).hex(),
        "not_after": cert.not_valid_after_utc.isoformat(),
    }
