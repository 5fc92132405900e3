"""Helpers that know nothing of pods or certificates.

- `backoff`: how long to wait before the next try.
- `clock`: the only place that reads the wall clock.
- `kube`: one small client for the Kubernetes API, raw JSON in and out.
- `health`: `/healthz` and `/readyz` over HTTP (control plane only).
- `informer`: list and watch one kind of object, and keep it (control plane only).
- `logs`: one JSON line per log record.
- `ports`: sets of ports as annotations write them.
- `settings`: reads settings from the environment, once, with readable errors.
- `tasks`: the only place that starts asyncio tasks.
- `tls13`: holds gRPC to TLS 1.3; must come before grpc is imported, hence the import here.
"""

from kit import tls13 as _tls13  # noqa: F401
