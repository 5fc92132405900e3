"""A pod's volumes: directories on the node's tmpfs that containers bind.

ConfigMap, Secret, projected and downward API volumes are written as the kubelet writes them (a
timestamped directory behind the symlink `..data`), so a reader sees the old files or the new, never
a mixture, and `refresh` updates them in place. `payload` is pure given the sources.
"""

import base64
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.clock import Monotonic, monotonic
from local.apiserver import resources
from local.apiserver.store import Store
from local.apiserver.tokens import Tokens
from local.errors import ApiError
from local.node.environment import ConfigMissing, PodFacts, field_value, resource_value
from local.objects import Object, dig, uid_of

_DEFAULT_MODE = 0o644
_RENEW_AT = 0.8
"""Share of a token's life after which it is renewed, as the kubelet does."""
_WRITTEN = ("configMap", "secret", "projected", "downwardAPI")


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int


class Sources:
    """ConfigMaps and Secrets of one namespace, decoded."""

    def __init__(self, store: Store, namespace: str) -> None:
        self._store, self._namespace = store, namespace

    def raw(self, kind: str, name: str) -> dict[str, bytes] | None:
        """The values of a `configMap` or `secret`, or None if there is no such object."""
        known = {"configMap": resources.CONFIG_MAPS, "secret": resources.SECRETS}
        found = self._store.get(known[kind].key, self._namespace, name)
        if found is None:
            return None
        if kind == "secret":
            return {k: base64.b64decode(v) for k, v in (found.get("data") or {}).items()}
        values = {k: str(v).encode() for k, v in (found.get("data") or {}).items()}
        binary = found.get("binaryData") or {}
        return values | {k: base64.b64decode(v) for k, v in binary.items()}

    def text(self, kind: str, name: str) -> Mapping[str, str] | None:
        values = self.raw(kind, name)
        if values is None:
            return None
        return {key: value.decode("utf-8", "replace") for key, value in values.items()}


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: float


class Volumes:
    """The volumes of one pod under `root`."""

    def __init__(
        self,
        pod: Object,
        root: Path,
        facts: PodFacts,
        store: Store,
        tokens: Tokens,
        clock: Monotonic = monotonic,
    ) -> None:
        self._pod, self._root, self._facts = pod, root, facts
        self._sources = Sources(store, pod["metadata"]["namespace"])
        self._tokens, self._clock = tokens, clock
        self._issued: dict[tuple[str, str], _Token] = {}
        self._written: dict[str, dict[str, File]] = {}
        self._fs_group: int | None = dig(pod, "spec", "securityContext", "fsGroup")

    def prepare(self) -> None:
        """Make every volume. Raises ConfigMissing while a source is not there."""
        self._root.mkdir(parents=True, exist_ok=True)
        for volume in self._pod["spec"].get("volumes") or ():
            path = self._root / volume["name"]
            if any(kind in volume for kind in _WRITTEN):
                self._write(volume, path)
            elif "hostPath" not in volume and not path.exists():
                path.mkdir()
                self._own(path, 0o777)
                path.chmod(0o2777 if self._fs_group is not None else 0o777)

    def refresh(self, pod: Object) -> None:
        """Bring the files up to date with their sources; one that is missing keeps its files."""
        self._pod = pod
        for volume in pod["spec"].get("volumes") or ():
            if any(kind in volume for kind in _WRITTEN):
                try:
                    self._write(volume, self._root / volume["name"])
                except ConfigMissing:
                    continue

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def source(self, mount: Object) -> str:
        """What a volumeMount binds: the volume, or what subPath names in it."""
        volume = next(v for v in self._pod["spec"]["volumes"] if v["name"] == mount["name"])
        base = Path(dig(volume, "hostPath", "path") or self._root / volume["name"])
        if not base.exists():
            raise ConfigMissing(f"volumes {volume['name']}: hostPath {base} does not exist")
        if not (sub := mount.get("subPath")):
            return str(base)
        inside = (base / sub).resolve()
        if base.resolve() not in inside.parents:
            raise ConfigMissing(f"volumeMounts {mount['name']}: subPath {sub!r} leaves the volume")
        if not inside.exists():
            inside.mkdir(parents=True)
        return str(inside)

    def _write(self, volume: Object, path: Path) -> None:
        files = self._payload(volume)
        if self._written.get(volume["name"]) == files:
            return
        path.mkdir(exist_ok=True)
        data = path / f"..{secrets.token_hex(6)}"
        data.mkdir()
        for name, file in files.items():
            target = data / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
            self._own(target, file.mode)
        old = path / "..data"
        before = old.resolve() if old.is_symlink() else None
        fresh = path / "..data_tmp"
        fresh.symlink_to(data.name)
        fresh.replace(old)
        tops = {name.split("/")[0] for name in files}
        for name in tops:
            if not (path / name).is_symlink():
                (path / name).symlink_to(f"..data/{name}")
        for entry in path.iterdir():
            if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
                entry.unlink()
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        self._written[volume["name"]] = files

    def _own(self, path: Path, mode: int) -> None:
        if self._fs_group is not None:
            mode |= 0o040
            try:
                os.chown(path, -1, self._fs_group)
            except OSError:
                mode |= 0o004  # one id is mapped: there is no such group
        path.chmod(mode)

    def _payload(self, volume: Object) -> dict[str, File]:
        if "projected" in volume:
            projected = volume["projected"]
            mode = projected.get("defaultMode", _DEFAULT_MODE)
            files: dict[str, File] = {}
            for source in projected.get("sources") or ():
                for kind, body in source.items():
                    files.update(self._source_files(kind, body, mode))
            return files
        kind = next(k for k in _WRITTEN if k in volume)
        body = volume[kind]
        mode = body.get("defaultMode", _DEFAULT_MODE)
        return self._source_files(kind, body, mode)

    def _source_files(self, kind: str, body: Object, mode: int) -> dict[str, File]:
        if kind == "serviceAccountToken":
            text = self._token(body.get("audience", ""), body.get("expirationSeconds", 3600))
            return {body["path"]: File(text.encode(), mode)}
        if kind == "downwardAPI":
            return {
                item["path"]: File(self._downward(item).encode(), item.get("mode", mode))
                for item in body.get("items") or ()
            }
        if kind in ("configMap", "secret"):
            name = body.get("name") or body.get("secretName") or ""
            return _keys(kind, name, self._sources.raw(kind, name), body, mode)
        raise ConfigMissing(f"volumes: projected source {kind!r} is not supported")

    def _downward(self, item: Object) -> str:
        if "fieldRef" in item:
            return field_value(self._pod, self._facts, item["fieldRef"]["fieldPath"])
        ref = item["resourceFieldRef"]
        named = (c for c in self._pod["spec"]["containers"] if c["name"] == ref["containerName"])
        return resource_value(next(named), ref)

    def _token(self, audience: str, lifetime_s: int) -> str:
        key = audience, str(lifetime_s)
        held = self._issued.get(key)
        if held is None or self._clock() >= held.renew_at:
            metadata = self._pod["metadata"]
            spec: dict[str, Any] = {
                "expirationSeconds": lifetime_s,
                "boundObjectRef": {
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": uid_of(self._pod),
                },
            }
            if audience:
                spec["audiences"] = [audience]
            account = self._pod["spec"]["serviceAccountName"]
            try:
                answer = self._tokens.request(metadata["namespace"], account, {"spec": spec})
            except ApiError as e:
                raise ConfigMissing(f"service-account token: {e}") from e
            renew_at = self._clock() + lifetime_s * _RENEW_AT
            held = self._issued[key] = _Token(answer["status"]["token"], renew_at)
        return held.text


def _keys(
    kind: str, name: str, values: dict[str, bytes] | None, body: Object, mode: int
) -> dict[str, File]:
    """The files of a ConfigMap or Secret, all of it or the items that are asked for."""
    optional = bool(body.get("optional"))
    if values is None:
        if optional:
            return {}
        raise ConfigMissing(f'{kind} "{name}" not found')
    if not body.get("items"):
        return {key: File(value, mode) for key, value in values.items()}
    files = {}
    for item in body["items"]:
        if item["key"] in values:
            files[item["path"]] = File(values[item["key"]], item.get("mode", mode))
        elif not optional:
            raise ConfigMissing(f'{kind} "{name}" has no key {item["key"]!r}')
    return files
