"""The few protobuf wire forms that OTLP spans need, as bytes.

Building message objects costs about 25 us a span; joining bytes that are mostly known already costs
a fifth of that, and spares the sidecar the memory of the message classes. Tests decode what this
makes with `opentelemetry-proto`. (Protocol Buffers, "Encoding".)
"""

import struct

MAX_TEXT = 1024
"""Characters of one text value that are kept; more than any honest value needs."""

_VARINT, _FIXED64, _LEN, _FIXED32 = 0, 1, 2, 5
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_MASK64 = (1 << 64) - 1
_ONE_BYTE = tuple(bytes((n,)) for n in range(128))


def varint(number: int) -> bytes:
    """`number` as a base-128 varint; a negative one takes ten bytes, as int64 does."""
    if 0 <= number < 128:
        return _ONE_BYTE[number]
    number &= _MASK64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def length_delimited(field: int, payload: bytes) -> bytes:
    """A submessage, string or bytes field."""
    return tag(field, _LEN) + varint(len(payload)) + payload


def integer(field: int, number: int) -> bytes:
    return tag(field, _VARINT) + varint(number)


def fixed64(field: int, number: int) -> bytes:
    return tag(field, _FIXED64) + _U64.pack(number & _MASK64)


def fixed32(field: int, number: int) -> bytes:
    return tag(field, _FIXED32) + _U32.pack(number & 0xFFFFFFFF)


def text(field: int, value: str) -> bytes:
    return length_delimited(field, bounded(value))


def bounded(value: str) -> bytes:
    """UTF-8 of at most MAX_TEXT characters; a lone surrogate, which it cannot say, becomes "?"."""
    return value[:MAX_TEXT].encode("utf-8", "replace")


def key_value(name: str, value: str | int | bool) -> bytes:
    """An OTLP KeyValue (common.proto): the key, and an AnyValue of the value's own type."""
    if isinstance(value, bool):
        any_value = integer(2, value)
    elif isinstance(value, int):
        any_value = integer(3, value)
    else:
        any_value = text(1, value)
    return text(1, name) + length_delimited(2, any_value)


def long_key_value(name: str, value: str) -> bytes:
    """As key_value, for a text of our own making that may be longer than MAX_TEXT."""
    return text(1, name) + length_delimited(2, length_delimited(1, value.encode()))
