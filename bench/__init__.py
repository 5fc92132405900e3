"""What a pair of podlink sidecars costs, beside a pair of Envoys and a pair of HAProxys.

`python -m bench` runs the same loads over every pair in one run, in turn, and prints a table.
README.md says how each figure is measured. From the inside out:

- `figures`: the figures, their goals, medians and verdicts. Pure.
- `table`: the table and the JSON form. Pure.
- `app`, `load`: the two ends of the path; each is a process of its own.
- `sink`: takes the spans that podlink's sidecars export, and counts them.
- `certificates`: one authority, two leaves and a stranger, made for each run.
- `processes`: children pinned to a CPU; their CPU time and memory.
- `priority`: keeps other programs out of a latency measurement.
- `proxies`: what a pair of proxies is; `envoy`, `haproxy` and `podlink` are the pairs.
- `podlink_sidecar`: one podlink data plane with static certificates and a static resolver.
- `mutual`: proof, before anything is measured, that a pair refuses whom it must refuse.
- `rounds`: runs the loads over the pairs and collects samples.
- `syscalls`: counts system calls per request with strace, when asked.
"""

from kit import tls13 as _tls13  # noqa: F401 - before anything here imports grpc
