"""Whose is a token: the CA's two questions, put to a real API server with the CA's own rights."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from certs.server.refusals import CallerForbidden, TokenRefused
from certs.server.tokens import TokenDesk
from kit.kube import Kube
from tests.injector.pods import pod
from tests.kubernetes.objects import until
from tests.kubernetes.programs import SYSTEM, ControlPlane
from tests.kubernetes.real_api import Object

AUDIENCE = "podlink-ca"


@pytest.fixture
async def desk(plane: ControlPlane) -> AsyncIterator[TokenDesk]:
    """The CA's, with the CA's own token."""
    configuration = Configuration(host=plane.objects.api.url)
    configuration.ssl_ca_cert = str(plane.objects.api.certificate)
    configuration.api_key = {"BearerToken": plane.programs["ca"].token}
    configuration.api_key_prefix = {"BearerToken": "Bearer"}
    async with Kube(configuration) as kube:
        yield TokenDesk(kube, "cluster.local")


def make(plane: ControlPlane, name: str = "web", namespace: str = "shop") -> Object:
    made = pod()
    made["metadata"] = {
        "name": name,
        "namespace": namespace,
        "labels": {"podlink.dev/inject": "disabled"},
    }
    answer = plane.objects.create(made)
    assert answer.status == 201, answer
    return answer.body


@pytest.fixture
def web(plane: ControlPlane) -> Iterator[Object]:
    made = make(plane)
    yield made
    plane.objects.delete(made)


async def test_a_pods_own_token_names_it(plane: ControlPlane, desk: TokenDesk, web: Object) -> None:
    caller = await desk.who(plane.token("shop", "default", web, AUDIENCE))
    assert str(caller.identity) == "spiffe://cluster.local/ns/shop/sa/default"
    assert (caller.pod_name, caller.pod_uid) == ("web", web["metadata"]["uid"])
    assert (await desk.pod_of(caller)).ips == frozenset()
    plane.report_addresses(web)
    assert (await desk.pod_of(caller)).ips == {plane.address}


@pytest.mark.attack_row(28)
async def test_a_token_for_the_api_server_is_none_for_the_ca(
    plane: ControlPlane, desk: TokenDesk, web: Object
) -> None:
    for audience in ("", "vault", "https://kubernetes.default.svc"):
        with pytest.raises(TokenRefused):
            await desk.who(plane.token("shop", "default", web, audience))


@pytest.mark.attack_row(28)
async def test_a_token_that_is_bound_to_no_pod_is_refused(
    plane: ControlPlane, desk: TokenDesk
) -> None:
    with pytest.raises(TokenRefused, match="authentication.kubernetes.io/pod-name"):
        await desk.who(plane.token("shop", "default", None, AUDIENCE))


@pytest.mark.attack_row(28)
async def test_a_token_that_was_changed_is_refused(
    plane: ControlPlane, desk: TokenDesk, web: Object
) -> None:
    head, body, signature = plane.token("shop", "default", web, AUDIENCE).split(".")
    other = plane.token(SYSTEM, "default", None, AUDIENCE).split(".")[1]
    turned = signature[:-8] + signature[-8:].swapcase()
    for forged in (f"{head}.{other}.{signature}", f"{head}.{body}.{turned}", "a.b.c"):
        with pytest.raises(TokenRefused):
            await desk.who(forged)


@pytest.mark.attack_row(29)
async def test_the_token_of_a_pod_that_has_gone_is_refused(
    plane: ControlPlane, desk: TokenDesk
) -> None:
    """The API server remembers its last answer for seconds; the question for the pod closes the gap."""
    made = make(plane, "gone")
    token = plane.token("shop", "default", made, AUDIENCE)
    caller = await desk.who(token)
    assert plane.objects.delete(made).status == 200
    with pytest.raises(CallerForbidden) as caught:
        await desk.pod_of(caller)
    assert caught.value.reason == "pod_gone"
    again = make(plane, "gone")
    try:
        with pytest.raises(CallerForbidden) as caught:
            await desk.pod_of(caller)
        assert caught.value.reason == "pod_replaced"

        def refused() -> bool:
            spec = {"token": token, "audiences": [AUDIENCE]}
            path = "/apis/authentication.k8s.io/v1/tokenreviews"
            review: Any = plane.objects.api.need("POST", path, {"spec": spec})
            return not review["status"].get("authenticated")

        until(refused, "the API server itself knows better")
        with pytest.raises(TokenRefused):
            await desk.who(token)
    finally:
        plane.objects.delete(again)


@pytest.mark.attack_row(29)
async def test_a_pod_that_has_ended_gets_no_certificate(
    plane: ControlPlane, desk: TokenDesk, web: Object
) -> None:
    caller = await desk.who(plane.token("shop", "default", web, AUDIENCE))
    path = "/api/v1/namespaces/shop/pods/web/status"
    body = {"status": {"phase": "Succeeded"}}
    plane.objects.api.need("PATCH", path, body, kind="application/merge-patch+json")
    with pytest.raises(CallerForbidden) as caught:
        await desk.pod_of(caller)
    assert caught.value.reason == "pod_finished"


@pytest.mark.attack_row(46)
async def test_nobody_gets_a_token_of_one_account_for_a_pod_of_another(
    plane: ControlPlane, web: Object
) -> None:
    """The API server's own rule, on which ours rests."""
    api = plane.objects.api
    api.call("POST", "/api/v1/namespaces/shop/serviceaccounts", {"metadata": {"name": "api"}})
    metadata = web["metadata"]
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": metadata["uid"]}
    spec = {"audiences": [AUDIENCE], "boundObjectRef": reference}
    path = "/api/v1/namespaces/shop/serviceaccounts/api/token"
    answer = api.call("POST", path, {"spec": spec})
    assert answer.status in (400, 403, 409, 422), answer
