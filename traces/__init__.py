"""The trace store: takes OTLP spans, keeps them in one SQLite file, answers questions about links.

- `config`: ports, limits, how long to keep what.
- `rows`: an OTLP request to rows of the store. Pure.
- `blob`: a span as it is kept, squeezed. Pure.
- `schema`: the tables, and how a file is opened.
- `writer`: the one thread that writes: group commit, back-pressure, retention.
- `links`: spans of both sides joined into links. Pure.
- `query`: reads links and traces from the file.
- `insert`, `rollups`, `retention`: rows into the tables, sums over them, and what is deleted when.
- `receive_grpc`, `receive_http`: OTLP in; `secured`: over mutual TLS; `vouch`: who may say what.
- `receivers`: both of them, from the first certificate on.
- `api`: the review API on 24114.
- `app`: puts them together; `python -m traces` runs it.
"""
