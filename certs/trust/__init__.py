"""The vocabulary of trust. Each module can be read alone.

- `identity`: who a workload is (a SPIFFE ID). Pure.
- `facts`: what a checked leaf says. Pure.
- `svid`: decides whether a leaf is lawful; the only maker of `LeafFacts`.
- `bundle`: the roots we trust.
- `contexts`: TLS contexts from key, chain and bundle.
- `lean`: lets OpenSSL keep less than Python's `ssl` lets it; a saving, never a defence.

The data plane may import `identity`, `facts`, `contexts` and `lean`, which never import `cryptography`.
"""
