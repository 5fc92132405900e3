"""What the data plane waits with.

- `poller`: many sockets, as part of the event loop itself. HOT PATH.
- `listener`: accepts connections and hands them on.
- `connect`: one TCP connection in progress.
- `deadlines`: time-outs that do not blame others for our own standstill.
"""
