"""Where a link goes, and how.

- `destination`: from what the app dialled to a route, and to the next one if that fails.
- `choose`: which endpoint of a Service, and why. Pure.
- `route`: through a tunnel, in plaintext, or nowhere. Pure.
- `ejections`: endpoints that failed and sit out for a while. Pure.
"""
