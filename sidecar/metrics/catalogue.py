"""Every metric of the proxy. A new one gets its line here and in docs/metrics.md (a test compares).

Labels are bounded: `reporter`, `security`, `reason` and `result` are closed sets, and of what grows
with the cluster (identities, Services, policies) a proxy keeps MAX_SERIES combinations, then
counts under `overflow` (GHSA-42mr-jpwh-m9rv is a proxy that did not).
"""

from typing import Final

from kit.exposition import Metric

MAX_SERIES: Final = 500
OVERFLOW: Final = "overflow"
_LINK: Final = ("reporter", "source_identity", "destination_identity", "service", "security")

OPENED = Metric(
    "podlink_tcp_connections_opened_total", "counter", "Links that were accepted.", _LINK
)
CLOSED = Metric(
    "podlink_tcp_connections_closed_total",
    "counter",
    "Links that were accepted and have ended.",
    _LINK,
)
OPEN = Metric("podlink_tcp_open_connections", "gauge", "Links that are open now.", _LINK)
SENT = Metric(
    "podlink_tcp_sent_bytes_total",
    "counter",
    "Bytes of the app's from source to destination, open links included.",
    _LINK,
)
RECEIVED = Metric(
    "podlink_tcp_received_bytes_total",
    "counter",
    "Bytes of the app's from destination to source, open links included.",
    _LINK,
)
DENIED = Metric(
    "podlink_link_denied_total",
    "counter",
    "Links that were denied, by reason (docs/reasons.md) and policy.",
    ("reporter", "reason", "policy"),
)
FAILED = Metric(
    "podlink_link_failed_total",
    "counter",
    "Links that failed before they were accepted, by reason (docs/reasons.md).",
    ("reporter", "reason"),
)
PLAINTEXT = Metric(
    "podlink_plaintext_connections_total",
    "counter",
    "Links without mutual TLS that were accepted, by reason (docs/reasons.md).",
    ("reporter", "reason"),
)
POOLED = Metric(
    "podlink_pooled_links_total",
    "counter",
    "Links that ended and had used an idle tunnel, so that no handshake was paid for them.",
    ("reporter",),
)
HANDSHAKES = Metric(
    "podlink_tls_handshakes_total",
    "counter",
    "TLS handshakes that ended, by side and result: ok, or a reason (docs/reasons.md).",
    ("reporter", "result"),
)
HANDSHAKE_SECONDS = Metric(
    "podlink_tls_handshake_seconds",
    "histogram",
    "How long handshakes took that came about.",
    ("reporter",),
)
RENEWALS = Metric(
    "podlink_tunnel_renewals_total",
    "counter",
    "New leaves proved inside running tunnels, by whose leaf (own, peer) and the outcome.",
    ("leaf", "outcome"),
)
TURNED_AWAY = Metric(
    "podlink_connections_turned_away_total",
    "counter",
    "Connections and links that were closed unheard because a limit was reached, by limit.",
    ("limit",),
)
INTERNAL_ERRORS = Metric(
    "podlink_internal_errors_total",
    "counter",
    "How often podlink's own code failed; each ends one link or connection alone. "
    "Above 0 is a bug: report it.",
)
SOURCE_ADDRESS = Metric(
    "podlink_source_address_total",
    "counter",
    "Connections to the app by whose address it was to see: shown, the peer's; else why the pod's own.",
    ("result",),
)
ACCEPT_PAUSES = Metric(
    "podlink_accept_pauses_total",
    "counter",
    "How often accepting was paused for want of file descriptors or memory.",
)
TUNNELS = Metric(
    "podlink_tunnels",
    "gauge",
    "Tunnels: idle ones that we dialled, and all that peers keep with us.",
    ("side",),
)
STRANGERS = Metric(
    "podlink_unauthenticated_connections",
    "gauge",
    "Connections that have not shown who they are yet.",
)
CERTIFICATE_ENDS = Metric(
    "podlink_identity_cert_expiration_timestamp_seconds",
    "gauge",
    "When our leaf ends, Unix time; 0 without one.",
    merge="min",
)
CERTIFICATE_LEFT = Metric(
    "podlink_identity_cert_seconds_left",
    "gauge",
    "Until our leaf ends, by a clock that nobody can set; 0 without one.",
    merge="min",
)
REFRESHES = Metric(
    "podlink_identity_cert_refresh_total",
    "counter",
    "Times our leaf was renewed, and times that failed.",
    ("result",),
    merge="max",
)
SPANS_EXPORTED = Metric("podlink_spans_exported_total", "counter", "Spans that the collector took.")
SPANS_DROPPED = Metric(
    "podlink_spans_dropped_total",
    "counter",
    "Spans that were lost, by lane; `export`: given up after the collector failed.",
    ("lane",),
)
REGISTRY_CONNECTED = Metric(
    "podlink_registry_connected", "gauge", "1 while the registry's stream is up.", merge="min"
)
REGISTRY_REFUSED = Metric(
    "podlink_registry_refused_total",
    "counter",
    "What the registry said and was left out, by reason (docs/reasons.md).",
    ("reason",),
)
READY = Metric("podlink_ready", "gauge", "1 while the pod may get traffic.", merge="min")
CAPTURED = Metric(
    "podlink_capture_in_place",
    "gauge",
    "1 while the canary is captured; 0 when the rules are gone; absent in localhost mode.",
    merge="min",
)
LOOP_LAG = Metric(
    "podlink_loop_lag_seconds",
    "gauge",
    "How late the event loop ran at worst in the last minute.",
    merge="max",
)
LOOP_STALLS = Metric(
    "podlink_loop_stalls_total", "counter", "How often the event loop stood still for a second."
)
BUILD = Metric(
    "podlink_build_info", "gauge", "1, with what runs.", ("version", "python"), merge="max"
)
WORKERS = Metric("podlink_workers", "gauge", "Processes that carry links.")
RESIDENT = Metric("process_resident_memory_bytes", "gauge", "Resident memory.")
CPU = Metric("process_cpu_seconds_total", "counter", "CPU time, user and system.")
OPEN_FDS = Metric("process_open_fds", "gauge", "Open file descriptors.")
MAX_FDS = Metric("process_max_fds", "gauge", "How many may be open.")
STARTED = Metric(
    "process_start_time_seconds", "gauge", "When the process started, Unix time.", merge="min"
)

CATALOGUE: Final[tuple[Metric, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
BY_NAME: Final = {metric.name: metric for metric in CATALOGUE}
