"""One spelling per IP address, wherever it comes from: two spellings of one address are one address."""

from ipaddress import IPv4Address, IPv6Address, ip_address


def canonical_ip(raw: str | IPv4Address | IPv6Address, *, scoped: bool = False) -> str:
    """The one text of an address: IPv4 mapped into IPv6 is written as IPv4. Raises ValueError.

    An address with a scope ("fe80::1%eth0") means something on one machine only and is refused; with
    `scoped`, as accept() and getpeername() give one, the scope is left off.
    """
    if isinstance(raw, str):
        if scoped and ":" not in raw:
            return raw  # the kernel's own text of an IPv4 address
        raw = ip_address(raw.partition("%")[0] if scoped else raw)
    if isinstance(raw, IPv6Address):
        if raw.scope_id is not None:
            raise ValueError(f"{str(raw)[:64]!a} has a scope")
        return str(raw.ipv4_mapped or raw)
    return str(raw)
