"""What the API server fills in before admission. Pure but for random names."""

import secrets
from collections.abc import Iterator
from typing import Any

from local.objects import Object, dig

NODE_NAME = "podlink-node"
TOKEN_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
ROOT_CA = "kube-root-ca.crt"
"""The ConfigMap in every namespace with the API server's CA (RootCAConfigMap publisher)."""
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_TOKEN_LIFETIME_S = 3607  # what the service-account admission plugin asks for


def random_suffix(length: int = 5) -> str:
    """Letters and digits that spell no words, as generateName appends."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def pod(obj: Object, account: Object | None) -> Object:
    """Fill in a pod: policies, its service account, and the volume with that account's token."""
    spec = {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 30,
        "enableServiceLinks": True,
        "schedulerName": "default-scheduler",
        "serviceAccountName": "default",
        "securityContext": {},
        **obj["spec"],
    }
    spec["serviceAccount"] = spec["serviceAccountName"]
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        wanted = (account or {}).get("automountServiceAccountToken", True)
    if wanted:
        _mount_token(spec)
    return {**obj, "spec": spec, "status": {"phase": "Pending", "qosClass": "BestEffort"}}


def _mount_token(spec: dict[str, Any]) -> None:
    """As the ServiceAccount admission plugin does: containers added later by webhooks get none."""
    name = f"kube-api-access-{random_suffix()}"
    mounted = False
    for field in ("initContainers", "containers"):
        changed = []
        for container in spec.get(field) or ():
            mounts = list(container.get("volumeMounts") or ())
            if all(m.get("mountPath") != TOKEN_DIRECTORY for m in mounts):
                mounts.append({"name": name, "readOnly": True, "mountPath": TOKEN_DIRECTORY})
                mounted = True
            changed.append({**container, "volumeMounts": mounts})
        if changed:
            spec[field] = changed
    if not mounted:
        return
    sources = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_LIFETIME_S, "path": "token"}},
        {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [
                    {
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }
                ]
            }
        },
    ]
    volume = {"name": name, "projected": {"defaultMode": 0o644, "sources": sources}}
    spec["volumes"] = [*(spec.get("volumes") or ()), volume]


def families(spec: Object) -> list[str]:
    """The IP families of a Service's addresses, the first one first ("IPv4/IPv6 dual-stack")."""
    asked = list(spec.get("ipFamilies") or ())
    if not asked:
        first = next(iter(spec.get("clusterIPs") or ()), spec.get("clusterIP") or "")
        asked = ["IPv6" if ":" in first else "IPv4"]
    if spec.get("ipFamilyPolicy") in ("PreferDualStack", "RequireDualStack"):
        asked += [family for family in ("IPv4", "IPv6") if family not in asked]
    return asked


def is_outside(spec: Object) -> bool:
    """Whether a Service is reached from outside the cluster too."""
    return spec.get("type") in ("NodePort", "LoadBalancer")


def service(
    obj: Object, cluster_ips: list[str], node_ports: Iterator[int], node_ips: list[str]
) -> Object:
    """Fill in a Service with its addresses, and with a free port of the node for each port that is to
    have one. A load balancer is the node itself, as k3s has it."""
    spec = {
        "type": "ClusterIP",
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
        **obj["spec"],
    }
    status: Object = {"loadBalancer": {}}
    if spec["type"] != "ExternalName":
        spec["ipFamilies"] = families(spec)
        dual = len(spec["ipFamilies"]) > 1
        spec.setdefault("ipFamilyPolicy", "RequireDualStack" if dual else "SingleStack")
        spec["clusterIP"], spec["clusterIPs"] = cluster_ips[0], cluster_ips
    spec["ports"] = [
        {"protocol": "TCP", "targetPort": port.get("port"), **port}
        for port in spec.get("ports") or ()
    ]
    if is_outside(spec):
        spec.setdefault("externalTrafficPolicy", "Cluster")
        for port in spec["ports"]:
            port.setdefault("nodePort", next(node_ports))
    if spec["type"] == "LoadBalancer":
        versions = {":" in ip for ip in cluster_ips}
        ingress = [{"ip": ip, "ipMode": "VIP"} for ip in node_ips if (":" in ip) in versions]
        status = {"loadBalancer": {"ingress": ingress}}
    return {**obj, "spec": spec, "status": status}


def workload(obj: Object) -> Object:
    """Fill in a Deployment, ReplicaSet or StatefulSet."""
    spec = {"replicas": 1, **obj["spec"]}
    return {**obj, "spec": spec, "status": {"replicas": 0}}


def webhooks(obj: Object) -> Object:
    """Fill in a webhook configuration."""
    defaults = {
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "namespaceSelector": {},
        "objectSelector": {},
        "timeoutSeconds": 10,
        "reinvocationPolicy": "Never",
    }
    filled = [{**defaults, **w} for w in obj.get("webhooks") or ()]
    for one in filled:
        if (ref := dig(one, "clientConfig", "service")) is not None:
            one["clientConfig"] = {**one["clientConfig"], "service": {"port": 443, **ref}}
    return {**obj, "webhooks": filled}
