"""Points the app's probes at the proxy, which runs them. Pure.

A kubelet's HTTP, TCP and gRPC probes, and its HTTP lifecycle hooks, come from the node in plaintext
and are captured like any stranger's. Each is replaced by a GET on the proxy's health port, and the
original goes into the proxy's setting `PODLINK_PROBES`. Exec probes run in the container and stay;
so does a probe with a `host` of its own, since it leaves the pod's address alone.

On a second look the originals come from that setting. It is never trusted: what it says goes
through the same reading as any pod's own probes, so a forged one can ask for nothing that the pod
could not have asked for by itself.

A probe asks whether the app lives, and anybody may have the proxy ask it. A hook makes the app do
something, so its path ends in a secret that only the pod's spec holds: made once, kept after that.
"""

import copy
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from injector.guard import PodRefused
from kit import contract

Raw = Mapping[str, Any]

_PROBES = {"startupProbe": "startup", "livenessProbe": "liveness", "readinessProbe": "readiness"}
_HOOKS = {"postStart": "post-start", "preStop": "pre-stop"}
_OURS = frozenset(
    {contract.CAPTURE_CONTAINER, contract.VALIDATE_CONTAINER, contract.PROXY_CONTAINER}
)
_HOOK_TIMEOUT_S = 30
_SECRET = re.compile(r"[0-9a-f]{32}")
_ACTIONS = ("httpGet", "tcpSocket", "grpc")


@dataclass(frozen=True, slots=True)
class _Handler:
    """One probe or hook of one container: where it stands, and its key in the setting."""

    path: str
    parent: dict[str, Any]
    name: str
    key: str
    ports: Mapping[str, int]

    @property
    def raw(self) -> dict[str, Any]:
        found: dict[str, Any] = self.parent[self.name]
        return found

    @property
    def is_hook(self) -> bool:
        return self.name in _HOOKS


def rewritten(spec: Raw) -> tuple[dict[str, Any], str, list[str]]:
    """A copy of the spec with its probes pointed at the proxy, the setting that says what they
    were, and the paths (RFC 6901, below the spec) of those that are not so in `spec` yet.

    Raises PodRefused for a probe that cannot be told from one of podlink's, or names no port.
    """
    changed = copy.deepcopy(dict(spec))
    known = _written_down(changed)
    originals: dict[str, Any] = {}
    paths: list[str] = []
    for handler in _handlers(changed):
        points_at_us = _points_at_us(handler)
        key = _key(handler, points_at_us)
        raw = _original(handler, key, known) if points_at_us else handler.raw
        asked = _asked(handler, raw)
        if asked is None and points_at_us:
            raise _foreign(handler)
        if asked is None:
            continue
        originals[key] = asked
        get = {"path": contract.PROBE_PATH + key, "port": contract.HEALTH_PORT}
        kept = {name: value for name, value in raw.items() if name not in _ACTIONS}
        handler.parent[handler.name] = {**kept, "httpGet": {**get, "scheme": "HTTP"}}
        if not points_at_us:
            paths.append(handler.path)
    return changed, _setting(originals), paths


def _setting(originals: Mapping[str, Any]) -> str:
    if not originals:
        return ""
    text = json.dumps(originals, sort_keys=True, separators=(",", ":"))
    return text.replace("$", "\\u0024")  # else Kubernetes would expand $(NAME) in it


def _handlers(spec: dict[str, Any]) -> Iterator[_Handler]:
    for field in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(field) or ()):
            if container.get("name") in _OURS:
                continue
            ports = {
                one["name"]: one["containerPort"]
                for one in container.get("ports") or ()
                if one.get("name") and "containerPort" in one
            }
            here = f"/{field}/{number}"
            lifecycle = container.get("lifecycle") or {}
            for parent, below, kinds in (
                (container, "", _PROBES),
                (lifecycle, "/lifecycle", _HOOKS),
            ):
                for name, kind in kinds.items():
                    if parent.get(name):
                        key = f"{container['name']}/{kind}"
                        yield _Handler(f"{here}{below}/{name}", parent, name, key, ports)


def _written_down(spec: Raw) -> Mapping[str, Any]:
    """What the proxy's setting says, unchecked; {} if there is none."""
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            if container.get("name") == contract.PROXY_CONTAINER:
                for one in container.get("env") or ():
                    if one.get("name") == contract.PROBES_VARIABLE and one.get("value"):
                        return _parsed(one["value"])
    return {}


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise PodRefused("probe_foreign", f"{contract.PROBES_VARIABLE} is not as podlink writes it")
    return found


def _points_at_us(handler: _Handler) -> bool:
    action = handler.raw.get("httpGet") or {}
    path = str(action.get("path", ""))
    return action.get("port") == contract.HEALTH_PORT and path.startswith(contract.PROBE_PATH)


def new_secret() -> str:
    """What a hook's path ends in: 32 hex digits that nobody guesses."""
    return secrets.token_hex(16)


def _key(handler: _Handler, points_at_us: bool) -> str:
    """Its key in the setting, which is its path below `/probe/`: a hook's has a secret at its end."""
    if not handler.is_hook:
        return handler.key
    if not points_at_us:
        return f"{handler.key}/{new_secret()}"
    secret = str(handler.raw["httpGet"]["path"]).rpartition("/")[2]
    if not _SECRET.fullmatch(secret):
        raise _foreign(handler)
    return f"{handler.key}/{secret}"


def _original(handler: _Handler, key: str, known: Mapping[str, Any]) -> Raw:
    """The probe as it was, from the proxy's setting."""
    entry = known.get(key)
    get = handler.raw["httpGet"]
    exact = {"path": contract.PROBE_PATH + key, "port": contract.HEALTH_PORT, "scheme": "HTTP"}
    if entry is None or {"scheme": "HTTP", **get} != exact:
        raise _foreign(handler)
    actions = {name: entry[name] for name in _ACTIONS if name in entry}
    rest = {name: value for name, value in handler.raw.items() if name != "httpGet"}
    return {**rest, **actions}


def _foreign(handler: _Handler) -> PodRefused:
    return PodRefused(
        "probe_foreign",
        f"{_words(handler)} points at podlink's own {contract.PROBE_PATH}, which no one else may",
    )


def _asked(handler: _Handler, raw: Raw) -> dict[str, Any] | None:
    """What the proxy is to do instead of the kubelet; None if this one stays with the kubelet."""
    (action, *more) = [name for name in _ACTIONS if raw.get(name) is not None] or [""]
    if not action or more or (handler.is_hook and action != "httpGet"):
        return None  # exec, sleep, or nothing that the API server would let pass
    found = raw[action]
    if not isinstance(found, Mapping):
        raise PodRefused("probe_malformed", f"{_words(handler)}.{action} is no map")
    if found.get("host"):
        return None
    port = _port(handler, found.get("port"))
    entry: dict[str, Any] = {"port": port}
    if action == "grpc":
        entry["service"] = _text(handler, found.get("service") or "")
    elif action == "httpGet":
        scheme = str(found.get("scheme") or "HTTP")
        if scheme not in ("HTTP", "HTTPS"):
            raise PodRefused("probe_malformed", f"{_words(handler)}: scheme must be HTTP or HTTPS")
        entry |= {"path": _text(handler, found.get("path") or "/"), "scheme": scheme}
        headers = [
            {"name": _text(handler, one["name"]), "value": _text(handler, one.get("value") or "")}
            for one in found.get("httpHeaders") or ()
        ]
        if headers:
            entry["httpHeaders"] = headers
    timeout = _HOOK_TIMEOUT_S if handler.is_hook else raw.get("timeoutSeconds") or 1
    return {action: entry, "timeoutSeconds": timeout}


def _port(handler: _Handler, raw: Any) -> int:
    """A number, or a name among the container's own ports (Kubernetes API, "IntOrString")."""
    port = handler.ports.get(raw, raw) if isinstance(raw, str) else raw
    if isinstance(port, str) and port.isascii() and port.isdigit():
        port = int(port)
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise PodRefused(
            "probe_port",
            f"{_words(handler)}: {str(raw)[:63]!r} is neither a port nor the name of one of the "
            "container's ports",
        )
    if port in contract.OWN_PORTS:
        raise PodRefused("probe_port", f"{_words(handler)}: port {port} is podlink's own")
    return port


def _text(handler: _Handler, raw: Any) -> str:
    if not isinstance(raw, str) or any(ord(letter) < 32 or ord(letter) == 127 for letter in raw):
        raise PodRefused(
            "probe_malformed", f"{_words(handler)}: {str(raw)[:63]!r} is no plain text"
        )
    return raw


def _words(handler: _Handler) -> str:
    return "spec" + handler.path.replace("/", ".")
