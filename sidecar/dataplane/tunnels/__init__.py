"""Tunnels: TLS connections between two sidecars that carry `podlink/2` or 1 (docs/protocol.md).

- `handshake`: either side's TLS handshake, and who the peer turns out to be.
- `tunnel`: a tunnel after its handshake. HOT PATH.
- `dial`: a new tunnel to a peer. `pool`: idle ones, for the next link. `acquire`: one or the other.
- `renewal`: a new leaf proved inside a tunnel, so that its link outlives the one before.
- `continuation`: the same by a new handshake, where no proof is heard.
- `inbound`: a peer's tunnel on the acceptor's side.
"""
