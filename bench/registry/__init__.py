"""The registry at cluster scale: `make bench-registry` (docs/performance.md has the figures).

A simulated API server (`apiserver`) holds 10,000 pods and 1,000 Services (`cluster`) and churns; the
real registry (`server`) watches it; 500 sidecars' streams over real mutual TLS (`sidecars`) say when
each change reached them. One clock serves all processes: CLOCK_MONOTONIC is the machine's.
"""
