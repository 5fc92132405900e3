"""Fields of objects that others write, read one by one into checked values. Pure.

A field that does not fit is left out alone: its reader returns the empty value of its type and notes
`Refused`, so that what is beside it counts and the loss is seen. An object without which nothing can
be said (no name, say) raises `Unreadable`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kit.addresses import canonical_ip
from kit.ports import NO_PORTS, PortSet

Raw = Mapping[str, Any]

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
LABEL: Final = re.compile(_LABEL, re.ASCII)
"""A DNS label: namespaces, Services, host names (Kubernetes, "Object Names and IDs", RFC 1123)."""
SUBDOMAIN: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
"""A DNS name: pods, nodes, service accounts, slices."""
LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
"""The value of a Kubernetes label; zones are such values."""
MAX_NAME: Final = 253
MAX_TEXT: Final = 4096
MAX_PORT: Final = 65535
MAX_DEPTH: Final = 64
"""Of one value in another; Kubernetes' own kinds need less than twenty."""
MAX_PORT_ITEMS: Final = 256
"""Of one list of ports and ranges. An annotation may have 64 (`injector.annotations`)."""
_SHOWN: Final = 64
_MAX_REFUSED: Final = 8
"""Kept of one object: enough to be found, and no more room than a name."""

REASONS: Final = {
    "missing": "a field that must be there is not",
    "type_wrong": "a text where a number should be, or the like",
    "name_malformed": "no DNS name or label, or too long",
    "text_too_long": "longer than a field of its kind may be",
    "port_out_of_range": "no port from 1 to 65535",
    "ports_malformed": "no list of ports and ranges",
    "number_out_of_range": "outside of what the field may be",
    "address_malformed": "no IP address",
    "address_local": "an address of one machine or one link, or nobody's",
    "value_unknown": "none of the words that the field may be",
    "too_many": "more entries than are read",
    "nested_too_deep": "values in values beyond any use",
}
"""Why a field is left out (docs/reasons.md)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One field that did not fit: where it stands, why, and the beginning of what it says."""

    field: str
    reason: str
    shown: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" + (f" ({self.shown})" if self.shown else "")


class Unreadable(ValueError):
    """Nothing can be said of the object: the field that it lacks, and why."""

    def __init__(self, field: str, reason: str, shown: str = "") -> None:
        super().__init__(str(Refused(field, reason, shown)))
        self.refused = Refused(field, reason, shown)
        self.reason = reason


class Fields:
    """Reads the fields of one object and notes what is left out.

    Every method takes the raw value and the field's name for the note. None, and what is absent,
    is no fault: it reads as the empty value.
    """

    __slots__ = ("_left_out",)

    def __init__(self) -> None:
        self._left_out: list[Refused] = []

    @property
    def refused(self) -> tuple[Refused, ...]:
        """What was left out, in the order of reading; the first few of many."""
        return tuple(self._left_out)

    def refuse(self, field: str, reason: str, raw: object = "") -> None:
        """Note that `field` is left out for one of REASONS."""
        if len(self._left_out) < _MAX_REFUSED:
            self._left_out.append(Refused(field, reason, "" if raw == "" else shown(raw)))

    def mapping(self, raw: object, field: str) -> Raw:
        if isinstance(raw, Mapping):
            return raw
        if raw is not None:
            self.refuse(field, "type_wrong", raw)
        return {}

    def listed(self, raw: object, field: str, most: int) -> list[Any]:
        """The first `most` entries."""
        if raw is None:
            return []
        if not isinstance(raw, list | tuple):
            self.refuse(field, "type_wrong", raw)
            return []
        if len(raw) > most:
            self.refuse(field, "too_many", len(raw))
        return list(raw[:most])

    def mappings(self, raw: object, field: str, most: int) -> list[Raw]:
        """The first `most` entries, without those that are no objects."""
        found = []
        for one in self.listed(raw, field, most):
            if isinstance(one, Mapping):
                found.append(one)
            else:
                self.refuse(field, "type_wrong", one)
        return found

    def text(self, raw: object, field: str, most: int = MAX_TEXT) -> str:
        if raw is None:
            return ""
        if not isinstance(raw, str):
            self.refuse(field, "type_wrong", raw)
            return ""
        if len(raw) > most:
            self.refuse(field, "text_too_long", raw)
            return ""
        if not _is_unicode(raw):
            self.refuse(field, "type_wrong", raw)
            return ""
        return raw

    def name(self, raw: object, field: str, form: re.Pattern[str] = SUBDOMAIN) -> str:
        """A name of the given form; "" for none."""
        if raw is None or raw == "":
            return ""
        if isinstance(raw, str) and len(raw) <= MAX_NAME and form.fullmatch(raw) is not None:
            return raw
        self.refuse(field, "name_malformed", raw)
        return ""

    def port(self, raw: object, field: str) -> int:
        """0 for none."""
        return self.number(raw, field, 1, MAX_PORT, 0, "port_out_of_range")

    def ports(self, raw: object, field: str) -> PortSet:
        """Ports and ranges, separated by commas; none at all if one of them is none."""
        text = self.text(raw, field)
        try:
            if text.count(",") >= MAX_PORT_ITEMS:
                raise ValueError
            return PortSet.parse(text)
        except ValueError:
            self.refuse(field, "ports_malformed", text)
            return NO_PORTS

    def number(
        self,
        raw: object,
        field: str,
        low: int,
        high: int,
        otherwise: int,
        reason: str = "number_out_of_range",
    ) -> int:
        if raw is None:
            return otherwise
        if isinstance(raw, bool) or not isinstance(raw, int):
            self.refuse(field, "type_wrong", raw)
            return otherwise
        if not low <= raw <= high:
            self.refuse(field, reason, raw)
            return otherwise
        return raw

    def address(self, raw: object, field: str) -> str:
        """In canonical text; "" for none."""
        if raw is None or raw == "":
            return ""
        try:
            return canonical_ip(raw) if isinstance(raw, str) else self._wrong(raw, field)
        except ValueError:
            self.refuse(field, "address_malformed", raw)
            return ""

    def _wrong(self, raw: object, field: str) -> str:
        self.refuse(field, "type_wrong", raw)
        return ""

    def choice(self, raw: object, field: str, known: Iterable[str]) -> str:
        """One of `known`; "" for none and for any other word, which is noted."""
        if raw is None or raw == "":
            return ""
        if isinstance(raw, str) and raw in known:
            return raw
        self.refuse(field, "value_unknown", raw)
        return ""


def must(found: str, field: str, raw: object) -> str:
    """`found`, which was read of `raw`; raises Unreadable if it is empty."""
    if found:
        return found
    if raw is None or raw == "":
        raise Unreadable(field, "missing")
    raise Unreadable(field, "name_malformed", shown(raw))


def shown(raw: object) -> str:
    """The beginning of `raw` for a reader, escaped. Never walks into what `raw` holds."""
    if isinstance(raw, str):
        text = ascii(raw[:_SHOWN])
        return text if len(raw) <= _SHOWN else text + "..."
    if raw is None or isinstance(raw, bool | float):
        return repr(raw)
    if isinstance(raw, int):  # a number of 5,000 digits has no text (sys.set_int_max_str_digits)
        return repr(raw) if abs(raw) < 1 << 128 else "a huge number"
    if isinstance(raw, Mapping):
        return f"an object of {len(raw)}"
    return f"a list of {len(raw)}" if isinstance(raw, list | tuple) else type(raw).__name__


def is_deep(raw: object, most: int = MAX_DEPTH) -> bool:
    """Whether values are nested in `raw` beyond `most` levels. Without recursion."""
    level: list[Any] = [raw]
    for _ in range(most):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner.extend(v for v in one.values() if isinstance(v, Mapping | list | tuple))
            elif isinstance(one, list | tuple):
                inner.extend(v for v in one if isinstance(v, Mapping | list | tuple))
        if not inner:
            return False
        level = inner
    return True


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON may hold half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
