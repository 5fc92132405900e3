"""Whatever stands in a TokenReview or a pod, the CA makes an identity of it or refuses the call."""

from typing import Any

import pytest
from hypothesis import given, settings

from certs.names import TOKEN_AUDIENCE
from certs.server.pods import choose_addresses, read_pod
from certs.server.refusals import CallRefused
from certs.server.review import Caller, read_review
from certs.trust.identity import WorkloadIdentity
from tests.certs.fake_kube import PROXY, review
from tests.hostile import spoilt

CALLER = Caller(WorkloadIdentity("cluster.local", "shop", "api"), "api-1", "uid-1", "node-1")
POD = {
    "metadata": {"name": "api-1", "namespace": "shop", "uid": "uid-1"},
    "spec": {
        "serviceAccountName": "api",
        "nodeName": "node-1",
        "hostNetwork": False,
        "initContainers": [PROXY],
        "containers": [{"name": "app", "image": "app:1"}],
    },
    "status": {
        "phase": "Running",
        "hostIP": "192.168.9.1",
        "hostIPs": [{"ip": "192.168.9.1"}],
        "podIP": "10.0.0.7",
        "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
    },
}


def test_the_pod_that_is_spoilt_below_is_read_as_it_is() -> None:
    assert choose_addresses(read_pod(POD, CALLER)).ips == {"10.0.0.7", "fd00::7"}


@pytest.mark.attack_row(50)
@settings(max_examples=300, deadline=None)
@given(spoilt(POD))
def test_a_pod_with_anything_in_it_is_read_or_refused(raw: Any) -> None:
    try:
        seen = read_pod(raw, CALLER)
    except CallRefused as refused:
        assert len(str(refused)) < 400
        return
    for ip in choose_addresses(seen).ips:
        assert ip in ("10.0.0.7", "fd00::7"), "no address but one that the API server wrote"


@pytest.mark.attack_row(50)
@settings(max_examples=300, deadline=None)
@given(spoilt(review("shop", "api", "api-1", "uid-1")))
def test_a_review_with_anything_in_it_is_that_caller_or_nobody(raw: Any) -> None:
    try:
        caller = read_review(raw, audience=TOKEN_AUDIENCE, trust_domain="cluster.local")
    except CallRefused as refused:
        assert len(str(refused)) < 400
        return
    assert caller.identity.trust_domain == "cluster.local"
    assert all(isinstance(part, str) and part for part in (caller.pod_name, caller.pod_uid))
