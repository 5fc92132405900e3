"""The tunnel protocols, `podlink/2` and `podlink/1`, and what is read off a raw connection. Bytes in,
values out.

- `frames`: the frame codec.
- `renewal`: the frames by which a new leaf is proved, and their order.
- `opening`: the OPEN, ACCEPT, REFUSE and RESET payloads.
- `session`: which frame may come when.
- `client_hello`: is this connection a peer of ours, or plaintext?
- `original_dst`: where a redirected connection was going.

No sockets, clocks or logging in this folder.
"""
