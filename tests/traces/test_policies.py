"""The store asks a real registry what is in force: for its page, its replay and its report."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kit.settings import Settings
from kit.tasks import spawn, stop
from registry.app import RegistryServer
from registry.config import RegistryConfig
from registry.policy_status import POLICIES
from registry.watch import NAMESPACES, PODS
from tests.certs.forge import Forge
from tests.kit.live_api import LiveApi, live_api
from tests.patience import PATIENCE_S
from tests.registry.fixed_source import FixedSource
from tests.registry.objects import namespace_object, pod
from tests.sidecar.telemetry.records import inbound_of, outbound
from tests.traces.spans import request_of
from traces.api import TOKEN_HEADER, review_app
from traces.config import TracesConfig
from traces.policies import PolicyWatch
from traces.policy_history import changes
from traces.query import Reader
from traces.writer import Writer

FORGE = Forge()
SYSTEM = "spiffe://cluster.local/ns/podlink-system/sa/podlink-"
BY_LABEL = {"selector": {"matchLabels": {"app": "db"}}, "allow": [{"from": [{"namespace": "x"}]}]}
EVERYBODY = {"allow": [{"from": [{"namespace": "shop", "serviceAccount": "api"}]}]}


def policy(name: str, spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "podlink.dev/v1alpha1",
        "kind": "LinkPolicy",
        "metadata": {"name": name, "namespace": "prod", "uid": f"u-{name}", "generation": 1},
        "spec": spec,
    }


@dataclass
class Running:
    api: LiveApi
    registry: RegistryServer
    reader: Reader
    client: "TestClient[web.Request, web.Application]"

    async def replay(self, **query: str) -> dict[str, Any]:
        async with self.client.get("/replay.json", params=query) as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = json.loads(await answer.text())
            return found

    async def kinds(self, count: int) -> list[str]:
        """What the history tells, once it tells of `count` changes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await self.reader.ask(lambda db: changes(db, 0, 1 << 62))
                if len(found) >= count:
                    return [f"{one.kind} {one.policy}" for one in found]
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(tmp_path: Path, *policies: dict[str, Any]) -> AsyncIterator[Running]:
    settings = Settings({"PODLINK_REGISTRY_LISTEN": "127.0.0.1:0"})
    (tmp_path / "token").write_text("t")
    config = TracesConfig(
        db_path=tmp_path / "db", token_path=tmp_path / "token", allow_unknown_senders=True
    )
    async with live_api() as (api, kube):
        api.put(NAMESPACES, namespace_object("prod"))
        api.put(PODS, pod("db-0", "10.1.0.9", namespace="prod", account="db", labels={"app": "db"}))
        api.put(POLICIES, *policies)
        own = FixedSource(FORGE, FORGE.leaf(f"{SYSTEM}registry", ips=["127.0.0.1"]))
        registry = RegistryServer(RegistryConfig.from_env(settings), kube, own)
        await registry.start()
        writer, reader = Writer(config), Reader(config.db_path)
        writer.start()
        near = outbound()
        await writer.write(request_of(near, inbound_of(near, policy="", rule="default")))
        source = FixedSource(FORGE, FORGE.leaf(f"{SYSTEM}traces"))
        watch = PolicyWatch(source, f"127.0.0.1:{registry.port}", writer, every_s=0.1)
        looking = spawn(watch.run(), name="look")
        app = review_app(config, reader, writer, None, watch)
        async with TestClient(TestServer(app), headers={TOKEN_HEADER: "t"}) as client:
            try:
                yield Running(api, registry, reader, client)
            finally:
                await stop(looking)
                await watch.close()
                await writer.stop()
                await registry.stop(grace_s=0)


async def test_a_policy_in_force_can_be_picked_and_needs_no_ticks(tmp_path: Path) -> None:
    async with running(tmp_path, policy("by-label", BY_LABEL), policy("all", EVERYBODY)) as it:
        async with it.client.get("/replay", params={"pick": "prod/by-label"}) as answer:
            page = await answer.text()
        assert '<option value="prod/by-label" selected>' in page
        assert "name: by-label" in page  # its text, to be changed and replayed
        assert "checkbox" not in page
        # The other policy never decided on a link that is kept, and is known all the same.
        alone = await it.replay(pick="prod/by-label")
        assert [row["fate"] for row in alone["rows"]] == ["kept"]
        assert "prod/all allow[0]" in alone["rows"][0]["because"]
        it.api.remove(POLICIES, policy("all", EVERYBODY))
        async with asyncio.timeout(PATIENCE_S):
            while (await it.replay(pick="prod/by-label"))["rows"][0]["fate"] != "cut":
                await asyncio.sleep(0.05)


async def test_a_selector_that_no_pod_fits_cuts_nothing(tmp_path: Path) -> None:
    other = {**BY_LABEL, "selector": {"matchLabels": {"app": "cache"}}}
    async with running(tmp_path, policy("cache", other)) as it:
        assert (await it.replay(pick="prod/cache"))["rows"] == []


async def test_what_is_made_and_deleted_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path, policy("all", EVERYBODY)) as it:
        async with asyncio.timeout(PATIENCE_S):
            while (
                await it.reader.ask(lambda db: db.execute("SELECT 1 FROM policies").fetchone())
                is None
            ):
                await asyncio.sleep(0.05)
        it.api.put(POLICIES, policy("by-label", BY_LABEL))
        await it.kinds(1)
        it.api.remove(POLICIES, policy("all", EVERYBODY))
        assert await it.kinds(2) == ["created prod/by-label", "deleted prod/all"]


async def test_nobody_without_the_token_hears_of_policies(tmp_path: Path) -> None:
    async with running(tmp_path, policy("all", EVERYBODY)) as it:
        for headers in ({TOKEN_HEADER: ""}, {TOKEN_HEADER: "x"}):
            async with it.client.get("/replay?pick=prod/all", headers=headers) as answer:
                assert answer.status == 401
                assert "prod/all" not in await answer.text()


async def test_a_registry_that_is_away_leaves_the_reader_to_say(tmp_path: Path) -> None:
    async with running(tmp_path, policy("all", EVERYBODY)) as it:
        text = json.dumps(policy("by-label", BY_LABEL))
        await it.registry.stop(grace_s=0)
        async with it.client.post("/replay", data={"policy": text}) as answer:
            page = await answer.text()
        assert "The registry could not be asked" in page
        assert 'type="checkbox" name="pod"' in page
