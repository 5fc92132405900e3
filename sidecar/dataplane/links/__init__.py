"""Links, from accept to their record.

- `outbound`: a link on its dialler's side, from the app's connect() to the peer's ACCEPT.
- `arrival`: a connection that reached the pod, until it is known what it is.
- `inbound`: a link on its acceptor's side, from OPEN to the app.
- `plaintext`: a plaintext link from outside that pod and policy let in.
- `splice`: moves the bytes once both ends exist. HOT PATH. `http_splice`: the same, with request spans.
"""
