"""What `podlink check` looks at. Each check has an id that does not change (docs/checks.md).

- `model`: a check's outcome. - `pre`: before an installation. - `control_plane`: after it.
- `proxies`: each meshed pod.
"""
