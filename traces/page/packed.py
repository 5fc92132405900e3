"""A policy's text as part of a URL, so that a replay can be shared. Pure."""

import base64
import binascii
import zlib

from traces.page.asked import QueryMalformed
from traces.page.replay import MAX_CHARACTERS

MAX_PACKED = 6000
"""Characters; servers and proxies on the way take about 8 KiB of address."""


def pack(text: str) -> str:
    """Deflated, in URL-safe base64. Empty if it would not fit into an address."""
    packed = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    return packed if len(packed) <= MAX_PACKED else ""


def unpack(packed: str) -> str:
    """The inverse; bounded, however small it was packed. Raises QueryMalformed."""
    try:
        raw = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        inflate = zlib.decompressobj()
        text = inflate.decompress(raw, MAX_CHARACTERS)
        if inflate.unconsumed_tail or not inflate.eof:
            raise QueryMalformed("policy is too long")
        return text.decode()
    except (binascii.Error, zlib.error, ValueError) as e:
        if isinstance(e, QueryMalformed):
            raise
        raise QueryMalformed("policy is no packed text of a policy") from e
