"""The kinds of object this API server knows, and how their URLs are read. Pure."""

from dataclasses import dataclass, field
from typing import Any

from local.objects import Object, dig


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: `group` is "" for the core. `stored` false: only asked questions (reviews)."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    stored: bool = True
    in_all: bool = False
    custom: bool = False
    schema: dict[str, Any] = field(default_factory=dict, compare=False)
    """Of a custom kind: its structural schema."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.plural

    @property
    def qualified(self) -> str:
        """`deployments.apps`, as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_AUTHORIZATION = "authorization.k8s.io"
_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"

PODS = Resource(
    "", "v1", "pods", "Pod", short=("po",), subresources=("status", "log", "exec"), in_all=True
)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False, ("ns",), ("status", "finalize"))
SERVICES = Resource(
    "", "v1", "services", "Service", short=("svc",), subresources=("status", "proxy"), in_all=True
)
SERVICE_ACCOUNTS = Resource(
    "", "v1", "serviceaccounts", "ServiceAccount", short=("sa",), subresources=("token",)
)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", short=("cm",))
SECRETS = Resource("", "v1", "secrets", "Secret")
NODES = Resource("", "v1", "nodes", "Node", False, ("no",), ("status",))
EVENTS = Resource("", "v1", "events", "Event", short=("ev",))
ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints", short=("ep",))
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
DEPLOYMENTS = Resource(
    "apps", "v1", "deployments", "Deployment", True, ("deploy",), ("status", "scale"), in_all=True
)
REPLICA_SETS = Resource(
    "apps", "v1", "replicasets", "ReplicaSet", True, ("rs",), ("status", "scale"), in_all=True
)
STATEFUL_SETS = Resource(
    "apps", "v1", "statefulsets", "StatefulSet", True, ("sts",), ("status", "scale"), in_all=True
)
CRDS = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    False,
    ("crd", "crds"),
    ("status",),
)
MUTATING = Resource(
    _ADMISSION, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False
)
VALIDATING = Resource(
    _ADMISSION, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False
)
POLICIES = Resource(
    _ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)
POLICY_BINDINGS = Resource(
    _ADMISSION,
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
    False,
)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
TOKEN_REVIEWS = Resource(
    "authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False, stored=False
)
ACCESS_REVIEWS = (
    Resource(
        _AUTHORIZATION,
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        False,
        stored=False,
    ),
    Resource(
        _AUTHORIZATION, "v1", "subjectaccessreviews", "SubjectAccessReview", False, stored=False
    ),
)
BUILT_IN = (
    PODS,
    NAMESPACES,
    SERVICES,
    SERVICE_ACCOUNTS,
    CONFIG_MAPS,
    SECRETS,
    NODES,
    EVENTS,
    ENDPOINTS,
    SLICES,
    Resource("events.k8s.io", "v1", "events", "Event"),
    DEPLOYMENTS,
    REPLICA_SETS,
    STATEFUL_SETS,
    CRDS,
    MUTATING,
    VALIDATING,
    POLICIES,
    POLICY_BINDINGS,
    LEASES,
    Resource(_RBAC, "v1", "roles", "Role"),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole", False),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short=("pdb",)),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short=("netpol",)),
    Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", False, ("pc",)),
    TOKEN_REVIEWS,
    *ACCESS_REVIEWS,
)


class Registry:
    """The built-in kinds and those that CustomResourceDefinitions add."""

    def __init__(self) -> None:
        self._by_path = {(r.group, r.version, r.plural): r for r in BUILT_IN}

    def all(self) -> list[Resource]:
        return list(self._by_path.values())

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def by_kind(self, api_version: str, kind: str) -> Resource | None:
        found = (r for r in self.all() if r.api_version == api_version and r.kind == kind)
        return next(found, None)

    def add_custom(self, definition: Object) -> None:
        """Serve every served version that a CustomResourceDefinition names."""
        spec = definition["spec"]
        names = spec["names"]
        for version in spec["versions"]:
            if not version.get("served", True):
                continue
            resource = Resource(
                spec["group"],
                version["name"],
                names["plural"],
                names["kind"],
                spec.get("scope") == "Namespaced",
                tuple(names.get("shortNames", ())),
                ("status",) if dig(version, "subresources", "status") is not None else (),
                custom=True,
                schema=dig(version, "schema", "openAPIV3Schema", default={}),
            )
            self._by_path[resource.group, resource.version, resource.plural] = resource

    def remove_custom(self, definition: Object) -> None:
        group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        for path in [p for p in self._by_path if (p[0], p[2]) == (group, plural)]:
            del self._by_path[path]


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL means: `name` is "" for a collection, `rest` is what follows a subresource."""

    group: str
    version: str
    namespace: str
    plural: str
    name: str = ""
    subresource: str = ""
    rest: str = ""


def read_path(path: str) -> Target | None:
    """Read /api/v1/... or /apis/<group>/<version>/...; None for anything else."""
    match path.strip("/").split("/"):
        case ["api", "v1", *parts]:
            group, version = "", "v1"
        case ["apis", group, version, *parts]:
            pass
        case _:
            return None
    namespace = ""
    if len(parts) >= 3 and parts[0] == "namespaces" and parts[2] not in ("status", "finalize"):
        namespace, parts = parts[1], parts[2:]
    if not parts or not all(parts[:3]):
        return None
    plural, name, subresource = [*parts, "", ""][:3]
    return Target(group, version, namespace, plural, name, subresource, "/".join(parts[3:]))
