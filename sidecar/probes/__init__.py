"""Runs the app's probes on the kubelet's behalf.

A kubelet asks in plaintext and from the node, so where plaintext is refused it would never reach the
app. The injector points each HTTP, TCP and gRPC probe at `/probe/<container>/<kind>` of the health
port and hands the original to the proxy, which asks the app at the pod's own IP, as the kubelet would.

- `spec`: reads the originals. Pure.
- `http`, `grpc`: ask the app once.
- `relay`: lets gRPC's library speak over a connection that we have made.
- `table`: answers the health port; one question at a time for each probe.
"""
