"""The bundle is in the system namespace and in every enrolled one, and heals."""

import asyncio
from typing import Any

import pytest

from certs.server.publish import BundlePublisher, keep_published
from kit.kube import KubeError
from kit.tasks import spawn, stop
from tests.certs.fake_kube import FakeKube
from tests.patience import PATIENCE_S

PEM = "-----BEGIN CERTIFICATE-----\n"
SYSTEM = "podlink-system"


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_enrolled_namespaces_get_it_now_and_later_and_others_never() -> None:
    fake = FakeKube()
    fake.add_namespace("shop")
    fake.add_namespace("private", team="x")
    async with fake.running() as kube:
        publishing = spawn(
            keep_published(BundlePublisher(kube, SYSTEM, PEM.encode)), name="publish"
        )
        await until(lambda: fake.bundle_in("shop") == PEM)
        assert fake.bundle_in(SYSTEM) == PEM
        fake.add_namespace("batch")
        await until(lambda: fake.bundle_in("batch") == PEM)
        fake.add_namespace("private")  # now with the label
        await until(lambda: fake.bundle_in("private") == PEM)
        await stop(publishing)
    assert fake.bundle_in("default") is None


@pytest.mark.fault_row("watch-gone")
async def test_after_410_it_lists_again_and_misses_nobody() -> None:
    fake = FakeKube()
    fake.add_namespace("shop")
    async with fake.running() as kube:
        publisher = BundlePublisher(kube, SYSTEM, PEM.encode)
        version = await publisher.publish_everywhere()
        fake.oldest = int(version) + 1
        with pytest.raises(KubeError) as gone:
            await publisher.follow(version)
        assert gone.value.status == 410
        fake.add_namespace("late")
        await publisher.publish_everywhere()
    assert fake.bundle_in("late") == PEM


async def test_a_changed_bundle_and_a_tampered_config_map_are_written_over() -> None:
    fake = FakeKube()
    pem = b"one"
    async with fake.running() as kube:
        publisher = BundlePublisher(kube, SYSTEM, lambda: pem)
        assert await publisher.publish("shop")
        assert not await publisher.publish("shop")
        fake.objects["/api/v1/namespaces/shop/configmaps/podlink-bundle"]["data"]["root.pem"] = "x"
        assert await publisher.publish("shop")
        pem = b"two"
        assert await publisher.publish("shop")
    assert fake.bundle_in("shop") == "two"


async def test_a_config_map_that_appears_in_between_is_patched() -> None:
    fake = FakeKube()
    path = "/api/v1/namespaces/shop/configmaps"

    def somebody_else_creates(method: str, asked: str) -> None:
        if (method, asked) == ("POST", path):
            fake.objects.setdefault(f"{path}/podlink-bundle", {"data": {"root.pem": "old"}})

    fake.before = somebody_else_creates
    async with fake.running() as kube:
        assert await BundlePublisher(kube, SYSTEM, PEM.encode).publish("shop")
    assert fake.bundle_in("shop") == PEM


async def test_an_unreadable_answer_is_survived() -> None:
    fake = FakeKube()
    fake.answers["GET", "/api/v1/namespaces"] = (200, "<html>")
    async with fake.running() as kube:
        publishing = spawn(
            keep_published(BundlePublisher(kube, SYSTEM, PEM.encode)), name="publish"
        )
        await until(lambda: ("GET", "/api/v1/namespaces") in fake.seen)
        fake.answers.clear()
        await until(lambda: fake.bundle_in(SYSTEM) == PEM)
        await stop(publishing)


async def test_one_namespace_that_refuses_does_not_hold_up_the_others() -> None:
    fake = FakeKube()
    for name in ("a", "b", "c"):
        fake.add_namespace(name)
    refused = (403, {"reason": "Forbidden", "message": "terminating"})
    fake.answers["POST", "/api/v1/namespaces/b/configmaps"] = refused
    async with fake.running() as kube:
        await BundlePublisher(kube, SYSTEM, PEM.encode).publish_everywhere()
    assert (fake.bundle_in("a"), fake.bundle_in("b"), fake.bundle_in("c")) == (PEM, None, PEM)


async def test_a_pod_enrolled_by_its_own_label_finds_it_in_its_namespace() -> None:
    fake = FakeKube()
    fake.add_pod("lone", "job-1")
    fake.pods["lone", "job-1"]["metadata"]["labels"] = {"podlink.dev/inject": "enabled"}
    fake.add_pod("other", "job-2")
    async with fake.running() as kube:
        await BundlePublisher(kube, SYSTEM, PEM.encode).publish_everywhere()
    assert fake.bundle_in("lone") == PEM
    assert fake.bundle_in("other") is None


async def test_another_bundle_is_written_everywhere_at_once_and_who_lacks_it_is_known() -> None:
    fake = FakeKube()
    for name in ("shop", "prod"):
        fake.add_namespace(name)
    pem = "one"
    async with fake.running() as kube:
        publisher = BundlePublisher(kube, SYSTEM, lambda: pem.encode())
        publishing = spawn(keep_published(publisher), name="publish")
        await until(lambda: publisher.unpublished() == () and fake.bundle_in("shop") == "one")
        pem = "two"
        refused = (403, {"reason": "Forbidden", "message": "terminating"})
        fake.answers["PATCH", "/api/v1/namespaces/prod/configmaps/podlink-bundle"] = refused
        assert publisher.unpublished() == (SYSTEM, "prod", "shop")
        publisher.bundle_changed()
        await until(lambda: fake.bundle_in("shop") == "two")
        await until(lambda: publisher.unpublished() == ("prod",))
        fake.answers.clear()
        publisher.bundle_changed()
        await until(lambda: publisher.unpublished() == ())
        await stop(publishing)


async def test_where_pods_may_not_be_listed_enrolled_namespaces_are_still_served() -> None:
    fake = FakeKube()
    fake.add_namespace("shop")
    fake.answers["GET", "/api/v1/pods"] = (403, {"reason": "Forbidden", "message": "no"})
    async with fake.running() as kube:
        publishing = spawn(
            keep_published(BundlePublisher(kube, SYSTEM, PEM.encode)), name="publish"
        )
        await until(lambda: fake.bundle_in("shop") == PEM)
        fake.add_namespace("late")
        await until(lambda: fake.bundle_in("late") == PEM)
        assert fake.seen.count(("GET", "/api/v1/pods")) == 1, "asked once, not in a loop"
        await stop(publishing)


async def test_a_bundle_that_changes_in_the_midst_of_a_round_is_not_missed() -> None:
    fake = FakeKube()
    for name in ("a", "b"):
        fake.add_namespace(name)
    pem = "one"
    async with fake.running() as kube:
        publisher = BundlePublisher(kube, SYSTEM, lambda: pem.encode())

        def change(method: str, path: str) -> None:
            nonlocal pem
            if method == "POST" and "/namespaces/b/" in path and pem == "one":
                pem = "two"
                publisher.bundle_changed()

        fake.before = change
        publishing = spawn(keep_published(publisher), name="publish")
        await until(lambda: publisher.unpublished() == () and fake.bundle_in("a") == "two")
        await stop(publishing)
