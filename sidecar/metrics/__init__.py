"""Counts for Prometheus, on the health port's `/metrics`.

- `families`: one metric with its samples; many of them as text, or added up over workers. Pure.
- `catalogue`: every metric there is, with its labels and help. docs/metrics.md lists the same.
- `links`: what is counted from the records of links, and of the links that are still open.
- `collect`: a look at everything else, when somebody asks.

No library: prometheus_client costs 4.3 MiB and 1.2 us per count, where a tuple in a dict costs
nothing of the one and 0.1 us of the other (docs/performance.md).
"""
