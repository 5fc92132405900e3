"""The signer in force: read from the store at start, on every change and by a timer.

A replacement that does not work is refused with an Event and the one in force stays. A CA that has
not been able to read the store for STALE_S signs no more: during a rotation it might go on with a root
that everybody else has given up.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.authority.issue import Authority, AuthorityExpired, CertificateUnsound, Order
from certs.authority.keyring import Keyring, check_successor
from certs.authority.keys import AuthorityRefused
from certs.authority.store import KeyStore, Stored
from certs.server.events import Events
from certs.server.refusals import CannotAnswer
from certs.trust.contexts import MaterialRefused, TlsMaterial
from certs.trust.identity import WorkloadIdentity
from certs.trust.pem import to_pem
from kit.backoff import Backoff
from kit.clock import Clock, Monotonic
from kit.kube import KubeError

REREAD_S = 15.0
STALE_S = 60.0
_log = logging.getLogger(__name__)


class KeyKeeper:
    """Call `run` in a task. `on_change` is called with each new authority, the first excepted."""

    def __init__(
        self,
        store: KeyStore,
        trust_domain: str,
        stored: Stored,
        events: Events,
        clock: Clock,
        monotonic: Monotonic,
        on_change: Callable[[Authority], None],
        reread_s: float = REREAD_S,
        stale_s: float = STALE_S,
    ) -> None:
        self._store, self._trust_domain, self._events = store, trust_domain, events
        self._clock, self._monotonic, self._on_change = clock, monotonic, on_change
        self._reread_s, self._stale_s = reread_s, stale_s
        self._stored = stored
        self._authority = stored.keyring.authority(trust_domain, clock())
        prove(self._authority, clock())
        self._read_at = monotonic()
        self._lock = asyncio.Lock()

    @property
    def keyring(self) -> Keyring:
        return self._stored.keyring

    @property
    def authority(self) -> Authority:
        """For looking at; to sign ask `signer`."""
        return self._authority

    def signer(self) -> Authority:
        """What may sign now; raises CannotAnswer if nobody knows whether it still may."""
        if self._monotonic() - self._read_at > self._stale_s:
            raise CannotAnswer("authority_stale", f"{self._store.where} could not be read")
        return self._authority

    async def refresh(self) -> None:
        """Read the store once. Raises KubeError or OSError; a bad keyring is told of and not used."""
        # One at a time: an answer that was on its way must not undo a newer one.
        async with self._lock:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            stored = await self._store.load()
            if stored is None:
                # Whoever deleted it meant no harm that we can undo: the mesh lives on these keys.
                await self._store.create(self.keyring)
                await self._events.warn("CaKeysRestored", f"{self._store.where} was gone")
                stored = await self._store.load()
            if stored is not None:
                self._use(stored)
        except AuthorityRefused as e:
            text = f"{self._store.where} is not used, the keys in force stay: {e}"
            await self._events.warn("CaKeysRefused", text)
        self._read_at = self._monotonic()

    async def replace(self, keyring: Keyring, of: Keyring) -> bool:
        """Put `keyring` in the place of `of`, which it was made out of, if that is still what is
        stored and in force; else False.

        Raises AuthorityRefused for what no CA would use: stored all the same, it would be refused by
        those that run, and one that restarts would not start.
        """
        now = self._clock()
        check_successor(of, keyring, self._trust_domain)
        prove(keyring.authority(self._trust_domain, now), now)
        async with self._lock:
            if self.keyring != of:  # read anew since: a guarded write would pass for up to date
                return False
            done = await self._store.replace(keyring, self._stored.version)
            await self._refresh()
        return done

    async def run(self) -> None:
        """Re-read whenever the store says so, and every `reread_s`, until cancelled."""
        backoff = Backoff(first_s=0.5, longest_s=10.0)
        while True:
            try:
                async with asyncio.timeout(self._reread_s):
                    async for _ in self._store.changes():
                        await self.refresh()
                        backoff.reset()
                await asyncio.sleep(min(self._reread_s, 1.0))
            except TimeoutError:
                await self._reread(backoff)
            except (KubeError, OSError, KeyError, TypeError, ValueError) as e:
                _log.warning(
                    "the CA's keys cannot be read",
                    extra={"where": self._store.where, "error": str(e)},
                )
                await asyncio.sleep(backoff.next_s())
                await self._reread(backoff)

    async def _reread(self, backoff: Backoff) -> None:
        try:
            await self.refresh()
            backoff.reset()
        except (KubeError, OSError) as e:
            _log.warning("the CA's keys cannot be read", extra={"error": str(e)})

    def _use(self, stored: Stored) -> None:
        if stored.keyring == self.keyring:
            self._stored = stored
            return
        check_successor(self.keyring, stored.keyring, self._trust_domain)
        now = self._clock()
        authority = stored.keyring.authority(self._trust_domain, now)
        prove(authority, now)
        self._stored, passed, self._authority = stored, self._authority, authority
        if (passed.issuer, passed.bundle) != (authority.issuer, authority.bundle):
            _log.info(
                "certificate authority changed",
                extra={
                    "issuer": authority.issuer.subject.rfc4514_string(),
                    "roots": ",".join(authority.bundle.fingerprints()),
                    "generation": authority.bundle.generation,
                },
            )
            self._on_change(authority)


def prove(authority: Authority, now: dt.datetime) -> None:
    """Issue a leaf to ourselves and shake hands with it: the only proof that counts that a peer will
    believe what this authority signs (path lengths, name constraints, weak keys of an intermediate).

    Raises AuthorityRefused.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    identity = WorkloadIdentity(authority.trust_domain, "podlink", "proof")
    try:
        issued = authority.issue(
            Order(identity, frozenset(), lifetime=dt.timedelta(minutes=1)), key.public_key(), now
        )
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        TlsMaterial(key_pem, to_pem(issued.chain_der), authority.bundle.to_pem()).prove()
    except (AuthorityExpired, CertificateUnsound, MaterialRefused) as e:
        raise AuthorityRefused(f"nobody would believe its leaves: {e}") from e
