"""One podlink data plane for the bench: static certificates and resolver, all else real.

    python -m bench.podlink_sidecar \\
        outbound --listen 127.0.0.1:P --target 127.0.0.1:Q --certs DIR --otlp 127.0.0.1:S
    python -m bench.podlink_sidecar \\
        inbound --listen 127.0.0.1:Q --app 127.0.0.1:R --certs DIR --otlp 127.0.0.1:S

What the bench expects of it:

- One process, one event loop. It listens on exactly `--listen`, and only once it can serve: the
  bench takes the first connection accepted there as "ready".
- `outbound` is the near sidecar. Whatever connects to P is a link to the pod 127.0.0.1, port Q, as
  an entry of `upstreams` would make it. The static resolver answers: meshed, identity
  `bench.certificates.FAR_IDENTITY`, the pod's IP 127.0.0.1 (it is among the leaf's IP SANs). A
  peer of any other identity or authority must get no byte of the app's.
- `inbound` is the far sidecar. Whatever connects to Q handshakes or is refused, as in `redirect`
  mode with `plaintext: deny`. OPEN names port Q (no capture here to translate it); the app is
  reached at R.
- DIR holds `ca.pem`, and for the own side `near.pem`/`near.key` or `far.pem`/`far.key` (PEM, chain
  and PKCS#8), loaded through the same `TlsMaterial` as a leaf from the authority.
- Everything that costs in a pod is on: the SVID check of each handshake, `authorise` against one
  policy of a few rules that allows `NEAR_IDENTITY`, the pool at its defaults, a LinkRecord per
  link, spans at sampling ratio 1, encoded and exported to the OTLP/gRPC endpoint at `--otlp`
  (plaintext, `bench.sink`). All modules of a real sidecar are imported, so that its memory is the
  memory of a pod's sidecar.
- SIGTERM ends it with status 0 within 3 s.
"""

import argparse


def arguments() -> argparse.Namespace:
    """The command line that `bench.podlink` writes."""
    parser = argparse.ArgumentParser(prog="bench.podlink_sidecar")
    roles = parser.add_subparsers(dest="role", required=True)
    outbound, inbound = roles.add_parser("outbound"), roles.add_parser("inbound")
    for role in (outbound, inbound):
        role.add_argument("--listen", required=True)
        role.add_argument("--certs", required=True)
        role.add_argument("--otlp", required=True)
    outbound.add_argument("--target", required=True)
    inbound.add_argument("--app", required=True)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    raise SystemExit(f"bench.podlink_sidecar: the {args.role} data plane is not wired in yet")


if __name__ == "__main__":
    main()
