"""Reads settings from the environment, once, at start. A wrong one stops the program in one line.

Each program's `config.py` builds a frozen dataclass from a `Settings`; nothing else reads the
environment.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_DURATION = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>ms|s|m|h|d)?")
_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9a-zA-Z.-]+):[0-9]{1,5}", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


class ConfigInvalid(SystemExit):
    """Stop with one readable line naming the setting; a wrong setting must never be guessed."""


class Settings:
    """The environment, read by name. Every method raises ConfigInvalid naming the variable.

    An empty value counts as not set (as OpenTelemetry's rules for OTEL_* say), so that a chart can
    leave a line in place.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if env is None else env

    def text(self, name: str, default: str | None = None) -> str:
        value = self._env.get(name) or default
        if value is None:
            raise ConfigInvalid(f"{name} is not set")
        return value

    def optional(self, name: str) -> str | None:
        return self._env.get(name) or None

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._env.get(name) or str(default).lower()
        if value not in ("true", "false"):
            raise ConfigInvalid(f"{name} must be true or false, not {value!r}")
        return value == "true"

    def integer(self, name: str, default: int | None = None, *, low: int, high: int) -> int:
        value = self.text(name, None if default is None else str(default))
        if not re.fullmatch(r"-?[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise ConfigInvalid(
                f"{name} must be a whole number from {low} to {high}, not {value!r}"
            )
        return int(value)

    def port(self, name: str, default: int | None = None) -> int:
        return self.integer(name, default, low=1, high=65535)

    def listen(self, name: str, default: str) -> str:
        """An address to listen on: `host:port`, IPv6 in brackets; port 0 is any free one."""
        value = self.text(name, default)
        if not _LISTEN.fullmatch(value) or int(value.rpartition(":")[2]) > 65535:
            raise ConfigInvalid(f"{name} must be host:port such as [::]:24111, not {value!r}")
        return value

    def seconds(self, name: str, default: float) -> float:
        """A duration such as 500ms, 5s, 10m, 1h or 7d; a bare number counts as seconds."""
        value = self.text(name, f"{default}s")
        found = _DURATION.fullmatch(value)
        if found is None:
            raise ConfigInvalid(f"{name} must be a duration such as 30s or 1h, not {value!r}")
        return float(found["number"]) * _SECONDS[found["unit"]]

    def choice(self, name: str, default: str, choices: frozenset[str]) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise ConfigInvalid(
                f"{name} must be one of {', '.join(sorted(choices))}, not {value!r}"
            )
        return value

    def path(self, name: str, default: str | None = None) -> Path:
        return Path(self.text(name, default))
