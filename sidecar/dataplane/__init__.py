"""The data plane: connections in, tunnels out, bytes moved. No gRPC, no Kubernetes, no X.509 parsing.

How a link flows through these folders:

    accept -> links/outbound -> routing (destination, choose, route) -> tunnels/acquire -> links/splice
    accept -> links/arrival -> tunnels/handshake -> links/inbound (authorise, the app) -> links/splice

- `links/`: the links themselves, from accept to their record; `splice` is the HOT PATH.
- `tunnels/`: the TLS connections that carry them: handshake, pool, dial; `tunnel` is the HOT PATH.
- `routing/`: where a link goes, and how: pure decisions.
- `loop/`: the event loop, listeners, connections in progress, deadlines; `poller` is the HOT PATH.
- `plane`: what all links of one sidecar share. `limits`: how much of everything it takes.
- `sweep`: looks over all links and tunnels every few seconds. `revocation`: applies new policies, bans
  and words of the registry to what is open. `records`: fills what the acceptor's side reports.
"""
