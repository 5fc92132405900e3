"""What a sidecar may ask for: an address, a Service, or a pod behind a headless Service. Pure."""

import re
from dataclasses import dataclass

from kit.checked import canonical_ip, shown

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"((?P<pod>{_LABEL})\.)?(?P<service>{_LABEL}\.{_LABEL})", re.ASCII)
_MAX_KEY = 253


class KeyMalformed(ValueError):
    """The key has none of the three forms."""

    reason = "key_malformed"


@dataclass(frozen=True, slots=True)
class Key:
    """`topic` is what changes with the answer; `pod` is set for a pod behind a Service."""

    text: str
    topic: str
    is_ip: bool
    pod: str = ""

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Read one key of `Subscribe`. Raises KeyMalformed."""
        if len(text) <= _MAX_KEY:
            try:
                return cls(text, canonical_ip(text), is_ip=True)
            except ValueError:
                pass
            if (name := _NAME.fullmatch(text)) is not None:
                return cls(text, name["service"], is_ip=False, pod=name["pod"] or "")
        raise KeyMalformed(f"neither an IP nor a Service name: {shown(text)}")
