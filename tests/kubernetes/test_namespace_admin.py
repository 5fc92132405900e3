"""podlink for one namespace, installed by an admin of two namespaces who is nothing else."""

from collections.abc import Iterator

import pytest

from cli.objects import Choices, build
from tests.kubernetes.objects import Objects, until
from tests.kubernetes.programs import SYSTEM
from tests.kubernetes.real_api import Object

RBAC = "/apis/rbac.authorization.k8s.io/v1"
# docs/install.md, "One namespace": what somebody with more rights makes, once.
ONCE = {
    "Namespace", "PriorityClass", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding",
    "MutatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}  # fmt: skip


@pytest.fixture
def admin(objects: Objects) -> Iterator[str]:
    """The token of somebody with the cluster's own role `admin` in `shop` and podlink's namespace."""
    if not objects.api.has_controllers:
        pytest.skip("the controller that puts the role admin together is not here")
    objects.drop_crd()
    api = objects.api
    try:
        for name in ("shop", SYSTEM):
            objects.namespace(name)
            subject = {"kind": "ServiceAccount", "name": "default", "namespace": "shop"}
            role = {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "admin",
            }
            body = {"metadata": {"name": "admin"}, "roleRef": role, "subjects": [subject]}
            api.need("POST", f"{RBAC}/namespaces/{name}/rolebindings", body)
        account = "/api/v1/namespaces/shop/serviceaccounts/default/token"
        token = str(api.need("POST", account, {"spec": {}})["status"]["token"])
        deployments = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments"
        until(lambda: api.call("GET", deployments, token=token).status == 200, "the roles count")
        yield token
    finally:
        for one in reversed(build(Choices(only_namespace="shop"))):
            if one["kind"] in ONCE - {"Namespace", "CustomResourceDefinition"}:
                objects.delete(one)
        objects.drop_crd()
        objects.drop_namespace("shop")
        objects.drop_namespace(SYSTEM)


def named(one: Object) -> str:
    return f"{one['kind']} {one['metadata'].get('namespace', '')}/{one['metadata']['name']}"


def test_all_but_what_is_listed_takes_no_more_than_the_namespaces_admin(
    objects: Objects, admin: str
) -> None:
    made = build(Choices(only_namespace="shop"))
    for one in made:
        if one["kind"] in ONCE:
            assert objects.create(one, token=admin, dryRun="All").status == 403, named(one)
            if one["kind"] != "Namespace":
                assert objects.create(one).status == 201, named(one)
    refused = {
        named(one)
        for one in made
        if one["kind"] not in ONCE and objects.create(one, token=admin).status != 201
    }
    # It grants what no admin has: the LinkPolicies' status is the registry's alone (docs/policy.md).
    registry = {"Role shop/podlink-registry", "RoleBinding shop/podlink-registry"}
    assert refused == registry
    for one in made:
        if named(one) in registry:
            assert objects.create(one).status == 201
