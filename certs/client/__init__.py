"""Keeps one workload's certificate fresh, and makes gRPC credentials from it.

- `source`: what the rest of a program sees, `SvidSource` and `Svid`.
- `ca`: `CaClient`, the source that asks our CA.
- `wire`: one connection to the CA: Sign and WatchBundle.
- `answer`: judges what the CA answered. Pure but for the proof by handshake.
- `renewal`: when to ask again. Pure.
- `rpc`: gRPC channels and server credentials from a source; facts of a gRPC peer.
- `web`: an HTTPS context whose certificate follows a source.
"""
