"""No answer is larger than a message: it would end the stream of whoever asks, again and again."""

import pytest

from proto import registry_pb2 as pb
from registry import answers as module
from registry.answers import MAX_ENTRY_BYTES, MAX_SETTINGS_BYTES, TOO_LARGE, Answers, message
from registry.facts import read_policy
from registry.keys import Key
from tests.registry.cluster import Cluster
from tests.registry.objects import endpoint, pod, service, slice_of

pytestmark = pytest.mark.attack_row(50)
GRPC_BYTES = 4 << 20
PORTS = 100


def test_a_service_too_large_for_a_message_has_the_endpoints_that_fit_the_ready_ones_first() -> (
    None
):
    cluster = Cluster()
    named = [{"name": f"p{n}", "port": 1000 + n} for n in range(PORTS)]
    cluster.services(service("big", "10.96.0.1", ports=tuple(named)))
    for number in range(2):
        made = [endpoint(f"203.{number}.{n // 250}.{n % 250}") for n in range(1000)]
        for one in made[5:]:
            one["conditions"] = {"ready": False}
        cluster.slices(slice_of("big", *made, name=f"s{number}", ports=tuple(named)))
    answers = Answers(cluster.model, "deny")
    entry = answers.entry(Key.parse("big.shop"))
    assert len(entry.framed) <= MAX_ENTRY_BYTES
    assert answers.cut > 0
    response = pb.DiscoverResponse.FromString(message(1, [entry], None))
    told = response.entries[0].service.endpoints
    assert len(told) > 200
    assert sum(one.ready for one in told) == 10
    assert len(told[0].ports) == PORTS


def test_policies_too_large_for_a_message_let_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.pods(pod("web", "10.0.0.1"))
    answers = Answers(cluster.model, "deny")
    rule = {"from": [{"namespace": f"namespace-{n}"} for n in range(64)]}
    for number in range(3):
        metadata = {"namespace": "shop", "name": f"p{number}", "uid": "u", "generation": 1}
        raw = {"metadata": metadata, "spec": {"allow": [rule] * 64}}
        cluster.model.change_policy(None, read_policy(raw))
    said = answers.settings("shop-web")
    assert said is not None
    assert len(said.policies) == 3
    monkeypatch.setattr(module, "MAX_SETTINGS_BYTES", said.ByteSize() - 1)
    said = answers.settings("shop-web")
    assert said is not None
    (closed,) = said.policies
    assert closed.name == TOO_LARGE
    assert not closed.allow
    assert not closed.audit
    assert answers.cut == 1


def test_the_bounds_fit_a_message() -> None:
    assert MAX_ENTRY_BYTES + max(MAX_SETTINGS_BYTES, 1 << 20) < GRPC_BYTES
