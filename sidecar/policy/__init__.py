"""May this link be? Pure decisions over values; the data plane acts on them.

- `authorise`: the receiver's verdict, from the peer's identity and the policies in force.
"""
