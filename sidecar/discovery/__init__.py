"""What the registry says, kept for the data plane.

- `translate`: messages of the registry into the values of `sidecar.directory`. Pure.
- `client`: the stream to the registry and the last answers.
"""
