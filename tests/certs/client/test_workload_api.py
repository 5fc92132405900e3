"""Certificates from a SPIFFE agent, over a real socket, judged as our own CA's are."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs.client.choose import SourceConfig
from certs.client.source import Svid, SvidSource
from certs.client.workload_api import EndpointMalformed, WorkloadApiSource, read_endpoint
from certs.trust.identity import WorkloadIdentity
from kit.settings import ConfigInvalid, Settings
from kit.tasks import spawn, stop
from tests.certs.client.test_ca import until
from tests.certs.fake_agent import FakeAgent, svid
from tests.certs.forge import DEFAULT, BadLeaf, Forge, Pair
from tests.certs.handshakes import shake
from tests.patience import PATIENCE_S

WANTED = WorkloadIdentity.parse(DEFAULT)
OTHER = "spiffe://cluster.local/ns/prod/sa/db"


@asynccontextmanager
async def following(agent: FakeAgent) -> AsyncIterator[WorkloadApiSource]:
    source = WorkloadApiSource(agent.endpoint, WANTED)
    running = spawn(source.run(), name="source under test")
    try:
        yield source
    finally:
        await stop(running)


async def ready(source: SvidSource) -> Svid:
    await asyncio.wait_for(source.wait_ready(), PATIENCE_S)
    assert source.current is not None
    return source.current


@pytest.fixture
def agent(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "agent.sock")


async def test_a_leaf_of_the_agent_works_and_the_header_is_sent(
    agent: FakeAgent, forge: Forge
) -> None:
    agent.show(svid(forge, forge.leaf(OTHER), OTHER), svid(forge, forge.leaf(), DEFAULT))
    async with agent.running(), following(agent) as source:
        found = await ready(source)
        peer = forge.leaf(OTHER)
        from certs.trust.contexts import TlsMaterial

        theirs = TlsMaterial(peer.key_pem, peer.chain_pem, forge.root_pem)
        shake(found.material.client_context(), theirs.server_context())
    assert found.facts.identity == WANTED, "not the first one offered, but ours"
    assert agent.calls[0]["workload.spiffe.io"] == "true"
    assert "PRIVATE" not in repr(found)


@pytest.mark.fault_row("root-rotation")
async def test_a_new_leaf_and_a_new_root_are_followed_without_a_restart(
    agent: FakeAgent, forge: Forge
) -> None:
    agent.show(svid(forge, forge.leaf(), DEFAULT))
    seen: list[Svid] = []
    async with agent.running(), following(agent) as source:
        source.subscribe(seen.append)
        first = await ready(source)
        both = forge.root_der + Forge(name="the next root").root_der
        agent.show(svid(forge, forge.leaf(), DEFAULT, bundle=both))
        await until(lambda: source.current is not first)
        second = source.current
        assert second is not None
        assert (second.generation, second.bundle_generation) == (2, 2)
        assert second.facts.serial != first.facts.serial
        assert source.refreshes == {"ok": 2, "failed": 0}
    assert [s.generation for s in seen] == [1, 2]


@pytest.mark.fault_row("control-plane-down")
async def test_an_agent_that_goes_and_comes_back_is_found_again(
    agent: FakeAgent, forge: Forge
) -> None:
    agent.show(svid(forge, forge.leaf(), DEFAULT))
    async with following(agent) as source:
        async with agent.running():
            first = await ready(source)
        await until(lambda: source.failures >= 1)
        assert source.current is first, "the leaf lives on"
        agent.show(svid(forge, forge.leaf(), DEFAULT))
        async with agent.running():
            await until(lambda: source.current is not first)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT]
)
async def test_an_agent_without_an_identity_for_us_is_asked_again_calmly(
    agent: FakeAgent, code: grpc.StatusCode
) -> None:
    agent.code = code
    async with agent.running(), following(agent) as source:
        await until(lambda: source.failures >= 2)
        assert source.current is None
    assert len(agent.calls) <= 6, "no hot loop"


def bad_answers(forge: Forge, bad: dict[str, BadLeaf]) -> dict[str, Any]:
    good, other = forge.leaf(), Forge(name="another")
    answers = {
        "nothing": (),
        "another identity": (svid(forge, forge.leaf(OTHER), OTHER),),
        "a label that lies": (svid(forge, forge.leaf(OTHER), DEFAULT),),
        "no form of ours": (svid(forge, good, "spiffe://cluster.local/spire/agent/x"),),
        "foreign root": (svid(forge, good, DEFAULT, bundle=other.root_der),),
        "no bundle": (svid(forge, good, DEFAULT, bundle=b""),),
        "leaf as bundle": (svid(forge, good, DEFAULT, bundle=good.der),),
        "no chain": (svid(forge, good, DEFAULT, x509_svid=b""),),
        "cut chain": (svid(forge, good, DEFAULT, x509_svid=good.der[:-1]),),
        "junk behind the chain": (svid(forge, good, DEFAULT, x509_svid=good.der + b"\0"),),
        "long chain": (svid(forge, good, DEFAULT, x509_svid=good.der * 9),),
        "another key": (
            svid(
                forge, good, DEFAULT, x509_svid_key=svid(forge, forge.leaf(), DEFAULT).x509_svid_key
            ),
        ),
        "no key": (svid(forge, good, DEFAULT, x509_svid_key=b"x"),),
    }
    for name in ("two URI SANs", "CA:TRUE", "expired"):
        leaf = bad[name]
        answers[name] = (svid(forge, Pair(leaf.key_pem, leaf.chain_pem), DEFAULT),)
    return answers


async def test_a_bad_answer_changes_nothing_and_the_stream_goes_on(
    agent: FakeAgent,
    forge: Forge,
    bad_leaves: dict[str, BadLeaf],
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent.show(svid(forge, forge.leaf(), DEFAULT))
    with caplog.at_level(logging.WARNING):
        async with agent.running(), following(agent) as source:
            first = await ready(source)
            for number, (name, answer) in enumerate(bad_answers(forge, bad_leaves).items(), 1):
                agent.show(*answer)
                await until(lambda n=number: source.failures >= n)
                assert source.current is first, name
            agent.show(svid(forge, forge.leaf(), DEFAULT))
            await until(lambda: source.current is not first)
    assert "PRIVATE" not in caplog.text


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "tcp://127.0.0.1:8000",
        "unix:relative",
        "unix://host/path?x",
        "/run/x",
        "http://x",
        "unix:///" + "a" * 200,
    ],
)
def test_only_a_socket_of_the_node_is_an_agent(endpoint: str) -> None:
    with pytest.raises(EndpointMalformed):
        read_endpoint(endpoint)
    assert read_endpoint("unix:///run/spire/agent.sock") == "unix:/run/spire/agent.sock"


def test_the_source_is_chosen_by_setting() -> None:
    assert SourceConfig.from_settings(Settings({})).leaves_name_pods
    chosen = SourceConfig.from_settings(
        Settings({"PODLINK_SVID_SOURCE": "workload-api", "PODLINK_WORKLOAD_API": "unix:///a.sock"})
    )
    assert (chosen.workload_api, chosen.leaves_name_pods) == ("unix:///a.sock", False)
    for wrong in (
        {"PODLINK_SVID_SOURCE": "spire"},
        {"PODLINK_SVID_SOURCE": "workload-api", "PODLINK_WORKLOAD_API": "tcp://x:1"},
    ):
        with pytest.raises(ConfigInvalid, match="PODLINK_"):
            SourceConfig.from_settings(Settings(wrong))
