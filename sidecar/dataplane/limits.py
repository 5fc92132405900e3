"""How much of everything one proxy takes. Pure: docs/limits.md lists the same, and a test compares.

What goes over a limit is closed unheard and counted under the limit's name
(`podlink_connections_turned_away_total`): a record of each would be the flood's next victim.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults; `for_process` fits them to what the kernel gives this process."""

    links: int = 20_000
    """Open links, both directions together."""
    plaintext_links: int = 10_000
    """Of those, plaintext ones from peers without identity: they must not keep out the others."""
    strangers: int = 1024
    """Connections that have not shown who they are yet, in all."""
    strangers_per_source: int = 128
    """The same, from one address."""
    handshakes_per_source: float = 500.0
    """Full handshakes a second from one address, after a burst of four times as many: a quarter of a
    core. An app that resets its connections costs a tunnel each, so it must not be lower."""
    tunnels_per_peer: int = 4096
    """Tunnels that one address keeps here."""
    idle_tunnels_per_peer: int = 256
    """Of those, idle ones: the longest idle go first. A dialler keeps 128."""
    renewals_per_source: float = 200.0
    """New leaves a second that one address may prove in running tunnels, after a burst of four times as
    many: some 5 % of a core. A peer that is told to come again does so well before its leaf ends."""
    refused_opens: float = 50.0
    """Refused OPENs a second of one address, after a burst of four times as many; then its tunnel
    is closed."""

    @classmethod
    def for_process(cls, descriptors: int, workers: int = 1) -> "Limits":
        """With `descriptors` (RLIMIT_NOFILE) to go round. A link takes two, and idle tunnels, the
        CA, the registry and the collector want some as well.

        With several workers the kernel spreads the connections of one source over them, and each
        worker counts for itself: it takes its part. All but the idle tunnels, which cost no CPU and
        are as many as the workers of the dialler keep."""
        spare = max(descriptors - 64, 24)
        base = cls()
        links = max(8, min(base.links // workers, spare // 3))
        return cls(
            links=links,
            plaintext_links=links // 2,
            strangers=max(8, min(base.strangers // workers, spare // 4)),
            strangers_per_source=max(4, min(base.strangers_per_source // workers, spare // 8)),
            handshakes_per_source=base.handshakes_per_source / workers,
            tunnels_per_peer=base.tunnels_per_peer // workers,
            renewals_per_source=base.renewals_per_source / workers,
            refused_opens=base.refused_opens / workers,
        )
