"""The Kubernetes client against a server that answers well, badly, and not at all."""

import errno
import os
import socket
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from kit.kube import JSON_PATCH, MERGE_PATCH, Kube, KubeError, Object, unreachable
from tests.kit.fake_api import PATH, event, events, fake_api, listing, pod, refusal


async def watched(kube: Kube) -> list[Object]:
    return [one async for one in kube.watch(PATH, "7")]


async def test_a_get_returns_the_object_and_sends_the_query() -> None:
    async with fake_api(listing("7", pod("a"))) as (api, kube):
        answer = await kube.get(PATH, limit="1", labelSelector="app=a b")
    assert answer["items"][0]["metadata"]["name"] == "a"
    asked = {"path": PATH, "method": "GET", "limit": "1", "labelSelector": "app=a b"}
    assert api.asked == [asked]


async def test_create_replace_patch_and_delete_send_their_method_and_body() -> None:
    ok = listing("1")
    async with fake_api(ok, ok, ok, ok, ok) as (api, kube):
        await kube.create(PATH, {"a": 1})
        await kube.replace(PATH, {"a": 2})
        await kube.patch(PATH, {"a": 3})
        await kube.patch(PATH, [{"op": "add", "path": "/a", "value": 4}], JSON_PATCH)
        await kube.delete(PATH, gracePeriodSeconds="0")
    assert api.bodies == [
        ("POST", "application/json", {"a": 1}),
        ("PUT", "application/json", {"a": 2}),
        ("PATCH", MERGE_PATCH, {"a": 3}),
        ("PATCH", JSON_PATCH, [{"op": "add", "path": "/a", "value": 4}]),
    ]
    assert api.asked[-1] == {"path": PATH, "method": "DELETE", "gracePeriodSeconds": "0"}


async def test_a_refusal_carries_status_reason_and_how_long_to_wait() -> None:
    async with fake_api(refusal(429, "TooManyRequests", {"Retry-After": "3"})) as (_, kube):
        with pytest.raises(KubeError) as caught:
            await kube.get(PATH)
    told = caught.value
    assert (told.status, told.reason, told.retry_after_s) == (429, "TooManyRequests", 3.0)


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b'"text"', b"\xff\xfe"])
async def test_an_error_page_that_is_no_status_is_still_a_kube_error(body: bytes) -> None:
    async with fake_api(lambda _: web.Response(status=502, body=body)) as (_, kube):
        with pytest.raises(KubeError, match="502 Unknown"):
            await kube.get(PATH)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null"])
async def test_a_success_without_an_object_is_malformed(body: bytes) -> None:
    async with fake_api(lambda _: web.Response(body=body)) as (_, kube):
        with pytest.raises(KubeError, match="Malformed"):
            await kube.get(PATH)


async def test_an_error_message_is_cut_so_that_it_cannot_hold_a_secret_whole() -> None:
    async with fake_api(lambda _: web.Response(status=500, text="x" * 5000)) as (_, kube):
        with pytest.raises(KubeError) as caught:
            await kube.get(PATH)
    assert len(str(caught.value)) < 300


async def test_a_server_that_is_not_there_has_status_zero() -> None:
    kube = Kube(Configuration(host="http://127.0.0.1:1"))
    with pytest.raises(KubeError) as caught:
        await kube.get(PATH)
    await kube.close()
    assert (caught.value.status, caught.value.reason) == (0, "Unreachable")
    said = "cannot reach the API server at http://127.0.0.1:1: connection refused"
    assert str(caught.value) == said


async def test_a_server_without_tls_is_told_from_one_that_is_not_there() -> None:
    async with fake_api() as (_, there):
        host = there._configuration.host.replace("http:", "https:")
        kube = Kube(Configuration(host=host))
        with pytest.raises(KubeError) as caught:
            await kube.get(PATH)
        await kube.close()
    assert f"at {host}: no TLS with it" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "connection reset by peer"),
        (socket.gaierror(-2, "x"), "its name does not resolve"),
        (aiohttp.ServerDisconnectedError(), "ServerDisconnectedError: Server disconnected"),
    ],
)
def test_why_a_server_is_out_of_reach_is_said_in_plain_words(error: Exception, said: str) -> None:
    assert str(unreachable("https://x:6443", error)).endswith(f" at https://x:6443: {said}")


async def test_a_watch_yields_events_and_asks_for_bookmarks_from_the_given_version() -> None:
    said = [event("ADDED", pod("a", "8")), event("BOOKMARK", pod("", "9"))]
    async with fake_api(events(*said)) as (api, kube):
        assert await watched(kube) == said
    asked = api.asked[0]
    assert (asked["resourceVersion"], asked["allowWatchBookmarks"]) == ("7", "true")


async def test_gone_is_one_error_as_a_status_and_as_an_event() -> None:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    for form in (refusal(410, "Expired"), events(event("ERROR", status))):
        async with fake_api(form) as (_, kube):
            with pytest.raises(KubeError) as caught:
                await watched(kube)
        assert (caught.value.status, caught.value.reason) == (410, "Expired")


@pytest.mark.parametrize("line", [b'{"type": "ADD', b"[]\n", b'{"type": "ADDED"}\n', b"\n"])
async def test_a_broken_watch_line_is_malformed_and_no_crash(line: bytes) -> None:
    async with fake_api(events(line)) as (_, kube):
        with pytest.raises(KubeError, match="Malformed"):
            await watched(kube)


async def test_an_event_of_a_megabyte_and_a_half_arrives_whole() -> None:
    big = event("ADDED", pod("a", "8", note="n" * 1_500_000))
    async with fake_api(events(big)) as (_, kube):
        assert await watched(kube) == [big]


async def test_the_kernel_probes_a_watch_so_that_a_dead_machine_is_noticed() -> None:
    async with fake_api(events(event("ADDED", pod("a", "8")), then_hang=True)) as (_, kube):
        port = int(kube._configuration.host.rpartition(":")[2])
        async with aclosing(kube.watch(PATH, "7")) as watching:
            await anext(watching)
            with ExitStack() as stack:
                (ours,) = [one for one in _connected(stack) if one.getpeername()[1] == port]
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                idle = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                every = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
                times = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
                assert idle + every * times <= 25


def _connected(stack: ExitStack) -> list[socket.socket]:
    """Every connected TCP socket of this process, as copies that share its options."""
    found = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            copied = os.dup(int(entry.name))
        except OSError:
            continue
        if not os.readlink(f"/proc/self/fd/{copied}").startswith("socket:"):
            os.close(copied)
            continue
        sock = stack.enter_context(socket.socket(fileno=copied))
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):
                sock.getpeername()
                found.append(sock)
    return found
