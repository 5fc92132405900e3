"""Reads the probes that the injector wrote down for the proxy. Pure.

The setting is a JSON object: `{"web/readiness": {"httpGet": {"path": "/healthz", "port": 8080,
"scheme": "HTTP", "httpHeaders": [{"name": "X", "value": "y"}]}, "timeoutSeconds": 1}}`, or with
`tcpSocket: {port}` or `grpc: {port, service}` instead (Kubernetes API, "Probe"). The key of a hook
(`post-start`, `pre-stop`) ends in `/` and a secret of 32 hex digits: a hook makes the app do something,
so who only reaches the health port must not be able to name one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from kit.contract import OWN_PORTS, PROBES_VARIABLE
from kit.settings import ConfigInvalid, Settings

KINDS = frozenset({"startup", "liveness", "readiness"})
HOOKS = frozenset({"post-start", "pre-stop"})
_SECRET = re.compile(r"[0-9a-f]{32}")
_MAX_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """GET `path` by `scheme` (`HTTP` or `HTTPS`) with these headers, in their order."""

    port: int
    timeout_s: float
    scheme: str
    path: str
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TcpProbe:
    port: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class GrpcProbe:
    """Ask grpc.health.v1.Health whether `service` serves; "" is the server as a whole."""

    port: int
    timeout_s: float
    service: str


Probe = HttpProbe | TcpProbe | GrpcProbe


@dataclass(frozen=True, slots=True)
class AppProbes:
    """`probes` by `<container>/<kind>`, or with a hook's secret, and the address a kubelet would ask."""

    ip: str
    probes: Mapping[str, Probe]

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the setting."""
        ip = settings.text("POD_IPS").partition(",")[0].strip()
        try:
            return cls(ip, read_probes(settings.text(PROBES_VARIABLE, "{}")))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigInvalid(f"{PROBES_VARIABLE} is not as the injector writes it: {e!r}") from e


def read_probes(text: str) -> dict[str, Probe]:
    """Raises ValueError, KeyError, TypeError or AttributeError for anything that is no probe."""
    return {_key(key): _probe(raw) for key, raw in json.loads(text).items()}


def _key(key: str) -> str:
    container, _, rest = key.partition("/")
    kind, _, secret = rest.partition("/")
    well = _SECRET.fullmatch(secret) if kind in HOOKS else rest in KINDS
    if not container or not well:
        raise ValueError(f"{key!r} names no probe")
    return key


def _probe(raw: Mapping[str, Any]) -> Probe:
    timeout_s = float(raw["timeoutSeconds"])
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise ValueError(f"{timeout_s} is no time limit")
    (kind,) = set(raw) - {"timeoutSeconds"}
    action = raw[kind]
    port = action["port"]
    if type(port) is not int or not 1 <= port <= 65535 or port in OWN_PORTS:
        raise ValueError(f"{port!r} is no port of the app")
    if kind == "tcpSocket":
        return TcpProbe(port, timeout_s)
    if kind == "grpc":
        return GrpcProbe(port, timeout_s, str(action["service"]))
    if kind != "httpGet" or action["scheme"] not in ("HTTP", "HTTPS"):
        raise ValueError(f"{kind!r} is no such action")
    headers = tuple((str(h["name"]), str(h["value"])) for h in action.get("httpHeaders", ()))
    for text in (action["path"], *(part for header in headers for part in header)):
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise ValueError(f"{text!r} holds a control character")
    return HttpProbe(port, timeout_s, action["scheme"], action["path"], headers)
