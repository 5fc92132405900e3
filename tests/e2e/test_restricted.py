"""At Pod Security level `restricted`: podlink without a capability, root or init container."""

import copy
from collections.abc import Iterator, Mapping

import pytest

from local.errors import LocalError
from tests.e2e.mesh import Mesh, identity, now, until
from tests.e2e.objects import MESH, Object, container, namespace, pod, service, serving
from tests.local.apiserver.test_podsecurity import STRICT

VAULT = "vault"
LOCALHOST = {"mode": "localhost"}


def _vault() -> Object:
    made = namespace(VAULT, injected=True)
    made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted"
    return made


def _restricted(name: str, app: Object, config: Mapping[str, str]) -> Object:
    made = pod(name, app, where=VAULT, config=config)
    made["spec"]["securityContext"] = copy.deepcopy(STRICT["securityContext"])
    app["securityContext"] = copy.deepcopy(STRICT["containers"][0]["securityContext"])
    return made


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    upstreams = "9001=ledger.vault:80, 9002=shop-floor.mesh:7001"
    made = [
        _vault(),
        service("ledger", {"port": 80, "targetPort": 7001}, where=VAULT),
        _restricted(
            "ledger",
            serving("echo", 7001, "127.0.0.1"),
            {**LOCALHOST, "expose-loopback-ports": "7001"},
        ),
        _restricted("clerk", container(["sleep", "86400"]), {**LOCALHOST, "upstreams": upstreams}),
        service("shop-floor", 7001),
        pod("shop-floor", serving("echo", 7001), config={"upstreams": "9009=ledger.vault:80"}),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made[1:])


def test_a_pod_that_would_be_captured_is_not_admitted_there(mesh: Mesh) -> None:
    """The control: the level is enforced, and it is the capability of capture that it refuses."""
    captured = _restricted("captured", container(["sleep", "1"]), {})
    with pytest.raises(LocalError, match=r"violates PodSecurity.*NET_ADMIN"):
        mesh.apply(captured)


@pytest.mark.parametrize(
    ("port", "destination", "account"),
    [
        (9001, f"{VAULT}/ledger", identity("default", VAULT)),
        (9002, f"{MESH}/shop-floor", identity("default")),
    ],
)
def test_a_restricted_pod_reaches_others_by_its_upstreams(
    mesh: Mesh, port: int, destination: str, account: str
) -> None:
    since = now()
    mesh.talk(f"{VAULT}/clerk", "127.0.0.1", port, "hello")
    link = mesh.link(since, sides=2, source=f"{VAULT}/clerk", destination=destination)
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["destination"]["identity"] == account
    assert link["source"]["identity"] == identity("default", VAULT)


def test_its_app_on_127_0_0_1_is_reached_by_captured_pods_and_by_their_upstreams(
    mesh: Mesh,
) -> None:
    for source, host, port in (
        ("mesh/client", "ledger.vault", 80),
        ("mesh/shop-floor", "127.0.0.1", 9009),
        ("mesh/shop-floor", "ledger.vault", 80),
    ):
        since, before = now(), mesh.seen(f"{VAULT}/ledger")
        mesh.talk(source, host, port, "hello")
        link = mesh.link(since, sides=2, source=source, destination=f"{VAULT}/ledger")
        assert (link["security"], link["verdict"]) == ("mtls", "allowed")
        until(
            lambda before=before: (
                mesh.seen(f"{VAULT}/ledger") == [*before, "accepted", "received 5"]
            ),
            "it was its app",
        )


def test_its_app_is_reached_by_nobody_else(mesh: Mesh) -> None:
    ip = mesh.ip(f"{VAULT}/ledger")
    assert mesh.attempt("plain/stranger", ip, 7001, "hello")["error"] == "ConnectionRefusedError"
    since = now()
    assert mesh.attempt("plain/stranger", ip, 24102, "hello")["got"] == ""
    assert mesh.link(since, destination=f"{VAULT}/ledger")["reason"] == "plaintext_denied"
