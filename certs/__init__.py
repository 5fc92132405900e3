"""Who is who: workload certificates, from the key that signs to the check on the wire.

- `trust`: the vocabulary (identity, leaf validator, bundle, TLS contexts). Holds no key of the CA.
- `authority`: the code that holds the signing key. Only `server` may import it.
- `server`: the CA as a program, `python -m certs.server`.
- `client`: keeps one workload's certificate fresh, and makes gRPC credentials from it.
- `settings`: what every program reads alike.
- `names`: names shared with Kubernetes.
"""

from kit import tls13 as _tls13  # noqa: F401 - before anything below imports grpc
