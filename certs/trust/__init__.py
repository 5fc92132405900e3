"""The vocabulary of trust. Each module can be read alone.

- `identity`: who a workload is (a SPIFFE ID). Pure.
- `facts`: what a checked leaf says. Pure.
- `svid`: decides whether a leaf is lawful; the only maker of `LeafFacts`.
- `bundle`: the roots we trust.
- `contexts`: TLS contexts from key, chain and bundle.

The data plane may import `identity`, `facts` and `contexts`, which never import `cryptography`.
"""
