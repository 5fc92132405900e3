"""Names that certs shares with Kubernetes. Constants only.

`kit.contract` holds the same names for the sidecar and the injector, which stand above this
package; a test keeps the two equal.
"""

TOKEN_AUDIENCE = "podlink-ca"  # noqa: S105 - a name, not a secret
BUNDLE_CONFIG_MAP = "podlink-bundle"
BUNDLE_KEY = "root.pem"
CA_SECRET = "podlink-ca"  # noqa: S105 - a name, not a secret
BANS_CONFIG_MAP = "podlink-bans"
ROTATION_CONFIG_MAP = "podlink-rotation"
LEDGER_PREFIX = "podlink-ca-ledger-"
INJECT_LABEL = "podlink.dev/inject"

CA_ACCOUNT = "podlink-ca"
TRACES_ACCOUNT = "podlink-traces"
CONTROL_PLANE_ACCOUNTS = frozenset({"podlink-registry", "podlink-injector", TRACES_ACCOUNT})
"""Service accounts of the system namespace whose leaves also carry their Service's DNS names."""


def service_dns_names(service: str, namespace: str) -> tuple[str, str]:
    """The names under which a Service's certificate is checked, shortest first."""
    return f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"
