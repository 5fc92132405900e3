"""Where a keyring is kept: the Secret `podlink-ca`, or a file for a CA on one machine.

Both replace the whole of it at once, and only if nobody else did since it was read. Whoever creates it
first wins: two CAs that start together settle it by the API server's answer (409), so there is never
a second root. What exists but holds no working CA is never overwritten: that would cut every link of
the mesh.
"""

import base64
import binascii
import fcntl
import hashlib
import json
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from certs.authority.keyring import Keyring
from certs.authority.keys import AuthorityRefused, KeyFiles, create_root
from certs.names import CA_SECRET
from kit.clock import Clock
from kit.kube import Kube, KubeError, Object

GENERATION_ANNOTATION = "podlink.dev/bundle-generation"
"""Where first versions kept the generation; still read."""
_MAX_FILE_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A keyring as it was read; `version` is what a guarded write compares."""

    keyring: Keyring
    version: str


class KeyStore(Protocol):
    """Reads raise AuthorityRefused for what is no keyring, and KubeError or OSError."""

    where: str
    """For logs and events."""

    async def load(self) -> Stored | None:
        """What is kept now; None if nothing is."""

    async def create(self, keyring: Keyring) -> bool:
        """Keep a first one; False if somebody was quicker."""

    async def replace(self, keyring: Keyring, version: str) -> bool:
        """Keep this one instead of that of `version`; False if another has taken its place."""

    def changes(self) -> AsyncIterator[None]:
        """Yields whenever something may have changed; ends or raises KubeError now and then."""


class SecretStore:
    """Keeps it in a `kubernetes.io/tls` Secret."""

    def __init__(self, kube: Kube, namespace: str, name: str = CA_SECRET) -> None:
        self._kube, self._namespace, self._name = kube, namespace, name
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"
        self._path = f"{self._secrets}/{name}"
        self.where = f"Secret {namespace}/{name}"

    async def load(self) -> Stored | None:
        try:
            secret = await self._kube.get(self._path)
        except KubeError as e:
            if e.status != 404:
                raise
            return None
        keyring = Keyring.from_data(_decode(secret, self.where))
        return Stored(keyring, str((secret.get("metadata") or {}).get("resourceVersion", "")))

    async def create(self, keyring: Keyring) -> bool:
        try:
            await self._kube.create(self._secrets, self._object(keyring, None))
        except KubeError as e:
            if e.status != 409:
                raise _quiet(e) from None
            return False
        return True

    async def replace(self, keyring: Keyring, version: str) -> bool:
        try:
            await self._kube.replace(self._path, self._object(keyring, version))
        except KubeError as e:
            if e.status not in (404, 409):
                raise _quiet(e) from None
            return False
        return True

    async def changes(self) -> AsyncIterator[None]:
        listed = await self._kube.get(
            self._secrets, fieldSelector=f"metadata.name={self._name}", limit="1"
        )
        version = str(listed["metadata"]["resourceVersion"])
        events = self._kube.watch(
            self._secrets, version, fieldSelector=f"metadata.name={self._name}"
        )
        yield
        async for event in events:
            if event["type"] != "BOOKMARK":
                yield

    def _object(self, keyring: Keyring, version: str | None) -> Object:
        metadata: Object = {
            "name": self._name,
            "namespace": self._namespace,
            "labels": {"app.kubernetes.io/part-of": "podlink"},
            "annotations": {GENERATION_ANNOTATION: str(keyring.generation)},
        }
        if version:
            metadata["resourceVersion"] = version
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": metadata,
            "data": {
                name: base64.b64encode(raw).decode("ascii")
                for name, raw in keyring.to_data().items()
            },
        }


class FileStore:
    """Keeps it in one file, mode 0600, for a CA on one machine. Replaced by rename, after fsync."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    async def load(self) -> Stored | None:
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                raw = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise AuthorityRefused(
                f"{self._path} may be read by others (mode {stat.S_IMODE(mode):o}): chmod 600"
            )
        try:
            data = {name: text.encode("ascii") for name, text in json.loads(raw).items()}
        except (AttributeError, ValueError) as e:
            raise AuthorityRefused(f"{self._path} holds no keyring: {type(e).__name__}") from None
        return Stored(Keyring.from_data(data), hashlib.sha256(raw).hexdigest())

    async def create(self, keyring: Keyring) -> bool:
        with self._alone():
            if self._path.exists():
                return False
            self._write(keyring)
        return True

    async def replace(self, keyring: Keyring, version: str) -> bool:
        with self._alone():
            try:
                raw = self._path.read_bytes()
            except FileNotFoundError:
                return False
            if hashlib.sha256(raw).hexdigest() != version:
                return False
            self._write(keyring)
        return True

    async def changes(self) -> AsyncIterator[None]:
        yield  # a timer looks at it anyway

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Between two CAs of one machine; the lock goes with the process that holds it."""
        fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, keyring: Keyring) -> None:
        """A reader finds the old file or the new one, after a crash too (rename(2), fsync(2))."""
        text = json.dumps({name: raw.decode("ascii") for name, raw in keyring.to_data().items()})
        temporary = f"{self._path}.{os.getpid()}.new"
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).rename(self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


async def found_keyring(
    store: KeyStore, trust_domain: str, clock: Clock, first: KeyFiles | None = None
) -> Stored:
    """Read the CA of this mesh, or found it (with `first` as its signer, else with a new root).

    Raises AuthorityRefused if what is kept is no working CA, KubeError or OSError.
    """
    stored = await store.load()
    if stored is None:
        keyring = Keyring(first or create_root(trust_domain, clock()))
        keyring.authority(trust_domain, clock())
        if await store.create(keyring):
            _log.info("created the root of this mesh", extra={"where": store.where})
        else:
            _log.info("another CA created the root first", extra={"where": store.where})
        # Read back in either case: what is kept is the truth.
        stored = await store.load()
        if stored is None:
            raise AuthorityRefused(f"{store.where} was there and is gone")
    stored.keyring.authority(trust_domain, clock())
    return stored


def _quiet(error: KubeError) -> KubeError:
    """An API server may quote what it refused, and that holds a key."""
    return KubeError(error.status, error.reason, "the Secret was not written", error.retry_after_s)


def _decode(secret: Object, where: str) -> dict[str, bytes]:
    data = secret.get("data") or {}
    found: dict[str, bytes] = {}
    try:
        for name, text in data.items():
            found[name] = base64.b64decode(text, validate=True)
    except (AttributeError, TypeError, binascii.Error) as e:
        raise AuthorityRefused(f"{where} must hold base64 ({type(e).__name__})") from None
    annotations = (secret.get("metadata") or {}).get("annotations") or {}
    if "generation" not in found and (raw := annotations.get(GENERATION_ANNOTATION)) is not None:
        found["generation"] = str(raw).encode("utf-8", "replace")
    return found


def read_secret_files(secret: Object, where: str) -> KeyFiles:
    """The signer in somebody else's `kubernetes.io/tls` Secret; raises AuthorityRefused."""
    data = _decode(secret, where)
    for name in ("tls.key", "tls.crt"):
        if not data.get(name):
            raise AuthorityRefused(f"{where}: {name} is missing")
    return KeyFiles(data["tls.key"], data["tls.crt"], data.get("ca.crt", b""))
