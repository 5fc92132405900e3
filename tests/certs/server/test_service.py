"""The CA over real gRPC: who gets a certificate, what is in it, and who gets none."""

import asyncio
import logging
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from certs.client.ca import make_request
from certs.server.access import ACCESS
from certs.server.refusals import PUBLIC_TEXT
from certs.trust.pem import to_pem
from certs.trust.svid import check_leaf
from kit.backoff import Backoff
from kit.clock import utcnow
from proto import ca_pb2
from tests.certs.fake_kube import NODE_NAME, POD_NAME, POD_UID, FakeKube, review
from tests.certs.requests import bad_requests, csr, greedy_csr
from tests.certs.running_ca import CA_NAME, RunningCa, running_ca
from tests.patience import PATIENCE_S

Code = grpc.StatusCode
TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
POD = "/api/v1/namespaces/shop/pods/api-1"


def assert_opaque(error: grpc.aio.AioRpcError, code: grpc.StatusCode) -> None:
    assert (error.code(), error.details()) == (code, PUBLIC_TEXT[code])


async def test_a_pod_with_a_good_token_gets_a_leaf_of_its_own(ca: RunningCa) -> None:
    token = ca.fake.add_pod(ips=("10.0.0.7", "fd00::7"))
    answer = await ca.sign(token)
    facts = check_leaf(answer.chain_der[0], trust_domain="cluster.local", now=utcnow())
    assert str(facts.identity) == "spiffe://cluster.local/ns/shop/sa/api"
    assert facts.ips == {"10.0.0.7", "fd00::7"}
    assert answer.lifetime_s == 3600
    assert list(answer.bundle.root_der) == list(ca.authority.bundle.roots)
    (issuance,) = ca.issued
    assert (issuance.pod_uid, issuance.node) == ("uid-1", "node-1")
    assert (issuance.serial, issuance.sha256) == (facts.serial, facts.sha256)
    assert not issuance.direct, "the call came from loopback, not from the pod"
    assert ca.fake.review_specs == [{"token": token, "audiences": ["podlink-ca"]}]


async def test_openssl_in_strict_mode_believes_the_leaf_in_both_roles(
    ca: RunningCa, tmp_path: Path
) -> None:
    answer = await ca.sign(ca.fake.add_pod())
    (tmp_path / "leaf.pem").write_bytes(to_pem(answer.chain_der))
    (tmp_path / "root.pem").write_bytes(to_pem(answer.bundle.root_der))
    for purpose in ("sslclient", "sslserver"):
        asked = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem"]
        done = subprocess.run(  # noqa: ASYNC221 - milliseconds
            [*asked, "leaf.pem"], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


BAD_TOKENS = {
    "none": None,
    "empty": "",
    "garbage": "garbage",
    "two parts": "a.b",
    "unknown": "a.b.c",
    "no JSON web token": "a.b.c$",
    "enormous": "a.b." + "c" * 17_000,
}


@pytest.mark.attack_row(28)
@pytest.mark.attack_row(33)
@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_without_a_good_token_nobody_is_served_not_even_from_localhost(
    ca: RunningCa, token: str | None
) -> None:
    assert_opaque(await ca.refusal(token), Code.UNAUTHENTICATED)
    assert not ca.issued
    assert (len(ca.fake.review_specs) == 1) == (token == "a.b.c")


GOOD = review("shop", "api", "api-1", "uid-1")


def altered(**changes: Any) -> Any:
    return {**GOOD, **changes}


def with_user(**changes: Any) -> Any:
    return {**GOOD, "user": {**GOOD["user"], **changes}}


HOSTILE_REVIEWS = {
    "expired": altered(authenticated=False, error="token has expired"),
    "an error beside success": altered(error="token has expired"),
    "default audience": altered(audiences=["https://kubernetes.default.svc"]),
    "other audience": altered(audiences=["vault"]),
    "audience as a prefix": altered(audiences=["podlink-ca-2"]),
    "audience as a text": altered(audiences="podlink-ca"),
    "no audience": altered(audiences=[]),
    "audiences missing": {k: v for k, v in GOOD.items() if k != "audiences"},
    "audiences null": altered(audiences=None),
    "authenticated missing": {k: v for k, v in GOOD.items() if k != "authenticated"},
    "authenticated as a text": altered(authenticated="true"),
    "authenticated as a number": altered(authenticated=1),
    "user missing": {k: v for k, v in GOOD.items() if k != "user"},
    "a node": with_user(username="system:node:node-1"),
    "a person": with_user(username="alice@example.com"),
    "nobody": with_user(username="system:anonymous"),
    "no name": with_user(username=""),
    "name is a number": with_user(username=7),
    "five parts": with_user(username="system:serviceaccount:shop:api:x"),
    "slash in the account": with_user(username="system:serviceaccount:shop:api/../../ns/x"),
    "upper case": with_user(username="system:serviceaccount:Shop:api"),
    "not bound to a pod": with_user(extra={}),
    "extra null": with_user(extra=None),
    "no pod UID": with_user(extra={POD_NAME: ["api-1"]}),
    "two pod names": with_user(extra={POD_NAME: ["api-1", "db-1"], POD_UID: ["uid-1"]}),
    "two pod UIDs": with_user(extra={POD_NAME: ["api-1"], POD_UID: ["uid-1", "uid-2"]}),
    "two nodes": with_user(
        extra={POD_NAME: ["api-1"], POD_UID: ["uid-1"], NODE_NAME: ["node-1", "node-2"]}
    ),
    "empty pod UID": with_user(extra={POD_NAME: ["api-1"], POD_UID: [""]}),
    "status is a list": [],
    "status is null": None,
}


@pytest.mark.attack_row(28)
@pytest.mark.attack_row(46)
@pytest.mark.parametrize("status", HOSTILE_REVIEWS.values(), ids=HOSTILE_REVIEWS)
async def test_a_review_that_leaves_a_doubt_makes_no_identity(ca: RunningCa, status: Any) -> None:
    token = ca.fake.add_pod(uid="uid-1")
    ca.fake.reviews[token] = status
    assert_opaque(await ca.refusal(token), Code.UNAUTHENTICATED)
    assert not ca.issued
    ca.fake.reviews[token] = GOOD
    assert (await ca.sign(token)).chain_der, "the positive control"


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_an_api_server_that_does_not_help_is_no_permission(
    ca: RunningCa, status: int
) -> None:
    token = ca.fake.add_pod()
    for question in (("POST", TOKEN_REVIEWS), ("GET", POD)):
        ca.fake.answers = {question: (status, {"reason": "x", "message": "secret detail"})}
        assert_opaque(await ca.refusal(token), Code.UNAVAILABLE)
    ca.fake.answers = {("POST", TOKEN_REVIEWS): (200, "<html>not JSON</html>")}
    assert_opaque(await ca.refusal(token), Code.UNAVAILABLE)
    assert not ca.issued


@pytest.mark.attack_row(29)
async def test_a_token_does_not_outlive_its_pod(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    pod = ca.fake.pods["shop", "api-1"]
    del ca.fake.pods["shop", "api-1"]
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    ca.fake.add_pod(uid="another pod of the same name")
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    for phase in ("Succeeded", "Failed"):
        ca.fake.pods["shop", "api-1"] = {**pod, "status": {"phase": phase}}
        assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    other_account = {**pod, "spec": {"serviceAccountName": "db"}}
    ca.fake.pods["shop", "api-1"] = other_account
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    ca.fake.pods["shop", "api-1"] = {"metadata": None}
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    assert not ca.issued


@pytest.mark.attack_row(26)
async def test_nothing_a_csr_asks_for_gets_into_the_leaf(ca: RunningCa) -> None:
    token, key = ca.fake.add_pod(), ec.generate_private_key(ec.SECP256R1())
    modest = x509.load_der_x509_certificate((await ca.sign(token, csr(key))).chain_der[0])
    greedy = x509.load_der_x509_certificate((await ca.sign(token, greedy_csr(key))).chain_der[0])
    assert list(greedy.extensions) == list(modest.extensions)
    assert greedy.subject == modest.subject == x509.Name([])
    assert greedy.issuer == modest.issuer
    assert {e.oid for e in greedy.extensions} == {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }


@pytest.mark.attack_row(27)
async def test_a_csr_that_proves_nothing_or_has_a_foreign_key_is_refused(tmp_path: Path) -> None:
    async with running_ca(tmp_path) as ca:
        for name, request in bad_requests().items():
            token = ca.fake.add_pod(name=f"pod-{len(ca.fake.pods)}")
            assert_opaque(await ca.refusal(token, request), Code.INVALID_ARGUMENT)
            assert not ca.issued, name


@pytest.mark.attack_row(30)
@pytest.mark.parametrize(
    ("wished_s", "granted_s"), [(0, 3600), (1, 5), (60, 60), (3600, 3600), (2**32 - 1, 3600)]
)
async def test_a_wished_lifetime_is_clamped(ca: RunningCa, wished_s: int, granted_s: int) -> None:
    answer = await ca.sign(ca.fake.add_pod(), ttl_s=wished_s)
    facts = check_leaf(answer.chain_der[0], trust_domain="cluster.local", now=utcnow())
    assert answer.lifetime_s == granted_s
    assert (facts.not_after - facts.not_before).total_seconds() == granted_s + 60


async def test_before_the_kubelet_reports_addresses_the_leaf_is_short(ca: RunningCa) -> None:
    answer = await ca.sign(ca.fake.add_pod(ips=(), hostIP="127.0.0.1"))
    assert answer.lifetime_s == 300
    facts = check_leaf(answer.chain_der[0], trust_domain="cluster.local", now=utcnow())
    assert facts.ips == frozenset(), "loopback is nobody's address"
    assert ca.issued[0].provisional


async def dns_names(ca: RunningCa, namespace: str, account: str) -> list[str]:
    token = ca.fake.add_pod(namespace, "pod", account)
    cert = x509.load_der_x509_certificate((await ca.sign(token)).chain_der[0])
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return san.get_values_for_type(x509.DNSName)


@pytest.mark.attack_row(46)
async def test_only_the_control_plane_gets_dns_names_and_only_its_own(ca: RunningCa) -> None:
    for account in ("podlink-registry", "podlink-injector", "podlink-traces"):
        name = f"{account}.podlink-system.svc"
        assert await dns_names(ca, "podlink-system", account) == [name, name + ".cluster.local"]
        assert await dns_names(ca, "shop", account) == []
    for account in ("podlink-ca", "default", "podlink-registry.x"):
        assert await dns_names(ca, "podlink-system", account) == []


@pytest.mark.attack_row(31)
async def test_a_huge_message_is_refused_and_the_ca_stays_up(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    refused = await ca.refusal(token, b"0" * 10 * 2**20)
    assert refused.code() is Code.RESOURCE_EXHAUSTED
    assert (await ca.sign(token)).chain_der


@pytest.mark.attack_row(31)
async def test_one_pod_that_asks_too_often_does_not_slow_another(ca: RunningCa) -> None:
    greedy, modest = ca.fake.add_pod(name="greedy"), ca.fake.add_pod(name="modest")
    outcomes = await asyncio.gather(*(ca.sign(greedy) for _ in range(16)), return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert 4 <= len(refused) <= 6
    for error in refused:
        assert_opaque(error, Code.RESOURCE_EXHAUSTED)
    assert (await ca.sign(modest)).chain_der


@pytest.mark.attack_row(32)
async def test_only_the_two_rpcs_of_the_access_table_exist(ca: RunningCa) -> None:
    service = ca_pb2.DESCRIPTOR.services_by_name["CertificateAuthority"]
    assert {method.name for method in service.methods} == ACCESS.keys()
    credentials = grpc.ssl_channel_credentials(ca.authority.bundle.to_pem())
    options = [("grpc.ssl_target_name_override", CA_NAME)]
    async with grpc.aio.secure_channel(ca.address, credentials, options) as raw_channel:
        for path in (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/podlink.ca.v1.CertificateAuthority/Debug",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                call: Any = raw_channel.unary_unary(path)
                await call(b"", timeout=PATIENCE_S)
            assert refused.value.code() is Code.UNIMPLEMENTED


async def test_a_refusal_is_explained_in_the_log_and_no_token_is(
    ca: RunningCa, caplog: pytest.LogCaptureFixture
) -> None:
    token = ca.fake.add_pod()
    with caplog.at_level(logging.DEBUG):
        await ca.sign(token)
        ca.fake.reviews[token] = altered(audiences=["vault"])
        await ca.refusal(token)
    reasons = [getattr(record, "reason", None) for record in caplog.records]
    assert "token_audience" in reasons
    everything = " ".join(str(vars(record)) for record in caplog.records)
    assert token not in everything
    assert "PRIVATE" not in everything


async def test_the_ca_shows_its_own_name_and_no_other(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    metadata = (("authorization", f"Bearer {token}"),)
    request = ca_pb2.SignRequest(csr_der=make_request()[1])
    async with ca.stub("podlink-ca.podlink-system.svc.cluster.local") as stub:
        assert (await stub.Sign(request, metadata=metadata, timeout=PATIENCE_S)).chain_der
    async with ca.stub("podlink-registry.podlink-system.svc") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Sign(request, metadata=metadata, timeout=PATIENCE_S)
    assert refused.value.code() is Code.UNAVAILABLE
    assert len(ca.issued) == 1


@pytest.mark.fault_row("ca-restart")
async def test_a_restarted_ca_has_the_same_root_and_its_old_leaves_stay_good(
    tmp_path: Path,
) -> None:
    fake = FakeKube()
    token = fake.add_pod()
    async with running_ca(tmp_path, fake) as first:
        before = await first.sign(token)
    async with running_ca(tmp_path, fake) as second:
        after = await second.sign(token)
    assert list(before.bundle.root_der) == list(after.bundle.root_der)
    leaf = x509.load_der_x509_certificate(before.chain_der[0])
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(after.bundle.root_der[0]))


@pytest.mark.fault_row("renewal-stampede")
async def test_a_crowd_of_one_address_is_shed_and_served(ca: RunningCa) -> None:
    tokens = [ca.fake.add_pod(name=f"pod-{n}") for n in range(120)]
    answering, shed = asyncio.Event(), 0
    ca.fake.wait = answering.wait  # until the first has been shed: no machine is too fast for that

    async def insist(token: str) -> None:
        nonlocal shed
        backoff = Backoff(first_s=0.2, longest_s=2.0)
        while True:
            try:
                await ca.sign(token)
                return
            except grpc.aio.AioRpcError as e:
                assert_opaque(e, Code.RESOURCE_EXHAUSTED)
                shed += 1
                answering.set()
                await asyncio.sleep(backoff.next_s())

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*map(insist, tokens))
    assert {issuance.pod_name for issuance in ca.issued} == {f"pod-{n}" for n in range(120)}
    assert shed > 0, "the crowd was larger than the limit"


async def test_a_slow_api_server_does_not_stop_calls_that_need_none(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    release = asyncio.Event()
    ca.fake.wait = release.wait
    waiting = asyncio.gather(*(ca.sign(token) for _ in range(3)))
    async with asyncio.timeout(PATIENCE_S):
        while ca.server.limits.in_flight.now < 3:
            await asyncio.sleep(0.01)
    assert_opaque(await ca.refusal("garbage"), Code.UNAUTHENTICATED)
    release.set()
    assert len(await waiting) == 3
