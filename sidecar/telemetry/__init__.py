"""Turns link records into OTLP spans and sends them, without ever slowing a link.

- `attributes`: every attribute of a span by name and type; docs/spans.md says what each means.
- `traceparent`: reads a claimed W3C traceparent. Pure.
- `wire`: the few protobuf wire forms that spans need. Pure.
- `encode`: a LinkRecord to the bytes of one OTLP Span. Pure.
- `resource`: which pod is speaking, as the bytes of one OTLP Resource. Pure.
- `queues`: which record is kept when not all can be. Pure.
- `config`: where to send, how much, how long to try.
- `exporter`: the LinkExporter, which does all the I/O.

Nothing here knows the data plane; they meet in `sidecar.report`.
"""
