"""The injector as it runs: HTTPS before it, a real API server stand-in behind it."""

import asyncio
import base64
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from injector.annotations import PodSettings
from injector.app import InjectorServer
from injector.bundle import PATH as CONFIGURATION
from injector.bundle import BundleKeeper, bundle_patch
from injector.config import InjectorConfig
from injector.container import sidecar_containers
from injector.namespaces import PATH as NAMESPACES
from injector.server import MAX_BODY_BYTES
from kit import contract
from kit.contract import INJECT_LABEL
from kit.settings import ConfigInvalid, Settings
from tests.certs.forge import Forge
from tests.injector.pods import changed, namespace, pod
from tests.injector.test_review import review
from tests.kit.live_api import LiveApi, live_api
from tests.registry.fixed_source import FixedSource

FORGE = Forge()
HOST = "podlink-injector.podlink-system.svc"
IDENTITY = "spiffe://cluster.local/ns/podlink-system/sa/podlink-injector"
CONFIGURATIONS = CONFIGURATION.rpartition("/")[0]


class Injector:
    def __init__(self, api: LiveApi, server: InjectorServer, source: FixedSource) -> None:
        self.api, self.server, self.source = api, server, source

    async def call(self, body: bytes, path: str = "/mutate") -> tuple[int, Any]:
        """As the API server calls: trusting the caBundle of the configuration, by Service name."""
        found = self.api.get(CONFIGURATIONS, "/podlink-injector")
        bundle = base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"]).decode()
        context = ssl.create_default_context(cadata=bundle)
        url = f"https://127.0.0.1:{self.server.port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=io.BytesIO(body), ssl=context, server_hostname=HOST) as response,
        ):
            return response.status, json.loads(await response.text())


def configuration() -> dict[str, Any]:
    hooks = [{"name": f"{name}.podlink.dev", "clientConfig": {}} for name in ("namespaces", "pods")]
    return {"metadata": {"name": "podlink-injector"}, "webhooks": hooks}


@asynccontextmanager
async def injector(*namespaces: Any, listen: str = "127.0.0.1:0") -> AsyncIterator[Injector]:
    settings = Settings({"PODLINK_INJECTOR_LISTEN": listen})
    async with live_api() as (api, kube):
        api.put(CONFIGURATIONS, configuration())
        api.put(NAMESPACES, *namespaces)
        source = FixedSource(FORGE, FORGE.leaf(IDENTITY, dns=[HOST]))
        server = InjectorServer(InjectorConfig.from_env(settings), kube, source)
        await server.start()
        await server.bundle.written.wait()
        await server.namespaces.wait_synced()
        assert server.ready
        try:
            yield Injector(api, server, source)
        finally:
            await server.stop()


async def test_a_pod_is_injected_over_https_with_the_published_bundle() -> None:
    async with injector(namespace()) as it:
        status, answer = await it.call(review(pod()))
        assert status == 200
        patch = json.loads(base64.b64decode(answer["response"]["patch"]))
        settings = Settings({})
        assert patch == changed(pod(), mesh=InjectorConfig.from_env(settings).mesh).patch


async def test_every_webhook_of_the_configuration_gets_the_bundle() -> None:
    async with injector(namespace()) as it:
        hooks = it.api.get(CONFIGURATIONS, "/podlink-injector")["webhooks"]
        wanted = base64.b64encode(FORGE.root_pem).decode()
        assert [hook["clientConfig"]["caBundle"] for hook in hooks] == [wanted, wanted]


async def test_a_renewed_certificate_is_shown_without_a_restart() -> None:
    async with injector(namespace()) as it:
        for _ in range(2):
            renewed = FORGE.leaf(IDENTITY, dns=[HOST])
            it.source.show(renewed)
            context = ssl.create_default_context(cadata=FORGE.root_pem.decode())
            _, writer = await asyncio.open_connection(
                "127.0.0.1", it.server.port, ssl=context, server_hostname=HOST
            )
            tls = writer.get_extra_info("ssl_object")
            assert tls.getpeercert(binary_form=True) == renewed.der
            writer.close()
            await writer.wait_closed()


async def test_the_default_address_answers_in_both_families() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with injector(namespace(), listen=f"[::]:{port}") as it:
        assert it.server.port == port
        for host in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            await writer.wait_closed()


async def test_a_namespace_that_does_not_exist_refuses_the_pod() -> None:
    async with injector() as it:
        _, answer = await it.call(review(pod()))
        assert answer["response"]["allowed"] is False
        assert "does not exist" in answer["response"]["status"]["message"]


@pytest.mark.attack_row(37)
async def test_a_namespace_labelled_after_our_watch_last_heard_of_it_still_injects() -> None:
    async with injector(namespace(None)) as it:
        # The watch's copy is old; only the API server knows of the label.
        fresh = namespace()
        it.api.get(NAMESPACES, "/shop")["metadata"]["labels"] = fresh["metadata"]["labels"]
        _, answer = await it.call(review(pod()))
        assert "patch" in answer["response"]


async def test_a_pod_of_a_namespace_that_is_not_enrolled_is_left_alone() -> None:
    async with injector(namespace(None)) as it:
        _, answer = await it.call(review(pod()))
        assert answer["response"] == {"uid": "u-1", "allowed": True}
        own = pod()
        own["metadata"]["labels"][INJECT_LABEL] = "enabled"
        _, answer = await it.call(review(own))
        assert "patch" in answer["response"]


async def test_what_is_no_review_is_a_bad_request() -> None:
    async with injector(namespace()) as it:
        status, answer = await it.call(b"[" * 100_000)
        assert (status, list(answer)) == (400, ["error"])


@pytest.mark.attack_row(31)
async def test_a_body_beyond_the_bound_is_refused_unread() -> None:
    async with injector(namespace()) as it:
        with pytest.raises((aiohttp.ClientError, json.JSONDecodeError, ssl.SSLError)):
            await it.call(b"x" * (MAX_BODY_BYTES + 1))
        status, _ = await it.call(review(pod()))
        assert status == 200


async def test_the_bundle_is_written_again_when_it_changes_or_somebody_undoes_it() -> None:
    async with live_api() as (api, kube):
        api.put(CONFIGURATIONS, configuration())
        keeper = BundleKeeper(kube)
        keeper.use(b"one")
        await keeper.write()
        keeper.use(b"two")
        await keeper.write()
        found = api.get(CONFIGURATIONS, "/podlink-injector")
        assert bundle_patch(found, b"two") == []
        found["webhooks"][1]["clientConfig"]["caBundle"] = "undone"
        await keeper.write()
        assert bundle_patch(api.get(CONFIGURATIONS, "/podlink-injector"), b"two") == []


def test_the_patch_of_the_bundle_first_tests_whose_webhook_it_is() -> None:
    assert [one["op"] for one in bundle_patch(configuration(), b"x")] == ["test", "add"] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_TRUST_DOMAIN", "Cluster.Local"),
        ("PODLINK_EXEMPT_BY", "port"),
        ("PODLINK_CLUSTER_CIDRS", "10.0.0.1/8"),
        ("PODLINK_PROXY_DEFAULTS", '{"skip-subnets": "10.0.0.0/9"}'),
        ("PODLINK_LOG_LEVEL", "loud"),
        ("PODLINK_INJECTOR_LISTEN", "24112"),
        ("PODLINK_INJECTOR_LISTEN", "::1:24112"),
        ("PODLINK_INJECTOR_LISTEN", "[::]:70000"),
    ],
)
def test_a_wrong_setting_stops_the_program_by_its_name(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        InjectorConfig.from_env(Settings({name: value}))


@pytest.mark.attack_row(34)
def test_where_records_go_is_the_operators_word_and_reaches_every_proxy() -> None:
    said = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example:4317",
        "OTEL_TRACES_SAMPLER": "",
        "PODLINK_ACCESS_LOG": "notable",
        "PODLINK_TRUST_DOMAIN": "cluster.local",
    }
    mesh = InjectorConfig.from_env(Settings(said)).mesh
    [proxy] = [
        container
        for container in sidecar_containers(mesh, PodSettings()).init_containers
        if container["name"] == contract.PROXY_CONTAINER
    ]
    env = {one["name"]: one.get("value") for one in proxy["env"]}
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "https://otel.example:4317"
    assert env["PODLINK_ACCESS_LOG"] == "notable"
    assert "OTEL_TRACES_SAMPLER" not in env
