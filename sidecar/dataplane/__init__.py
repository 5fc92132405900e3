"""The data plane: connections in, tunnels out, bytes moved. No gRPC, no Kubernetes, no X.509 parsing.

How a link flows through these files:

    accept -> outbound (resolve, choose, authorise) -> pool or dial -> tunnel -> splice
    accept -> inbound (peek, handshake, OPEN, authorise) -> splice -> the app

- `listener`: accepts connections and hands them on.
- `tunnel`: one TLS connection that carries `podlink/1`. HOT PATH.
- `splice`: moves bytes between a near socket and a tunnel, or between two sockets. HOT PATH.
- `choose`: which endpoint of a Service, and why. Pure.
- `route`: through a tunnel, in plaintext, or nowhere. Pure.
- `dial`: a new tunnel to a peer, verified.
- `pool`: idle tunnels, for the next link.
- `outbound`, `inbound`: the two ends of a link.
- `context`: what all of them share.
"""
