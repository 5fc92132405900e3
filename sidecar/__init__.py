"""The proxy of one pod (`python -m sidecar`), and what prepares the pod for it.

Links, from the app's connect() to their record:

- `dataplane/`: the links themselves: connections in, tunnels out, bytes moved.
- `wire/`: what goes over a tunnel, and what tells one connection from another. Pure.
- `directory`: who is where, as the data plane asks; `discovery/` fills it from the registry.
- `authorise`: whether a peer may, by `policy/`. Pure.
- `report`: the record of a link; `denials`, `telemetry/`, `metrics/` and `admin/` are told of each.

The process around them:

- `app`: puts the parts together, starts and ends them. `config`: its settings.
- `carrier`: all that carries links in one process; `workers/`: one such process, or several.
- `health`, `pages`, `probes/`: what the kubelet and Prometheus ask. `admin/`: what `podlink` asks.
- `memory`, `resident`, `lag`: how much it uses, and how late its loop is.
- `sockets`, `listening`, `errors`: the kernel's side, and every way in which a link can fail.

Capture:

- `capture/`: puts the redirect rules in place, once, with NET_ADMIN. `canary`: proves them meanwhile.
- `source_address`, `source_check`: how the app sees its peer's own address, and the proof of it.
- `wait`: the hook of a proxy that is no native sidecar.
"""
