"""Probes run against real servers: HTTP, HTTPS, gRPC and TCP, well, ill, slow, and nobody there."""

import asyncio
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kit.contract import OWN_PORTS
from kit.settings import ConfigInvalid, Settings
from kit.tasks import spawn
from sidecar.health import HealthServer
from sidecar.pages import Answer, Request
from sidecar.probes.spec import (
    AppProbes,
    GrpcProbe,
    HttpProbe,
    Probe,
    TcpProbe,
    read_probes,
)
from sidecar.probes.table import ProbeTable


class App:
    """An app with an HTTP server; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[web.Request] = []
        self.release = asyncio.Event()
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        where = request.path.removeprefix("/")
        if where == "slow":
            await self.release.wait()
        if where == "loop":
            raise web.HTTPFound("/loop")
        if where == "away":
            raise web.HTTPFound("http://192.0.2.1/")
        if where == "here":
            raise web.HTTPFound("/500")
        if where.startswith("own/"):
            port, path = where.removeprefix("own/"), "/probe/web/liveness"
            raise web.HTTPFound(f"http://127.0.0.1:{port}{path}")
        return web.Response(status=int(where) if where.isdigit() else 200, text="secret of the app")


@pytest.fixture
async def app(unused_tcp_port: int) -> AsyncIterator[App]:
    made = App()
    runner = await served(made, unused_tcp_port)
    yield made
    made.release.set()
    await runner.cleanup()


async def served(app: App, port: int, context: ssl.SSLContext | None = None) -> web.AppRunner:
    site = web.Application()
    site.router.add_get("/{rest:.*}", app.handle)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    app.port = port
    return runner


def plain(answer: Answer) -> tuple[int, str]:
    assert isinstance(answer.body, bytes)
    return answer.status, answer.body.decode()


async def run(probe: Probe, ip: str = "127.0.0.1") -> tuple[int, str]:
    table = ProbeTable(AppProbes(ip, {"web/liveness": probe}))
    try:
        return plain(await table.answer(Request("/probe/web/liveness")))
    finally:
        await table.close()


def get(port: int, path: str = "/", **more: object) -> HttpProbe:
    whole = {"timeout_s": 3.0, "scheme": "HTTP", "headers": (), **more}
    return HttpProbe(port=port, path=path, **whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/", "200", "/204", "/399", "/away"])
async def test_an_app_that_answers_is_well(app: App, path: str) -> None:
    assert await run(get(app.port, path)) == (200, "ok\n")


@pytest.mark.parametrize(("path", "status"), [("/404", 404), ("/500", 500), ("/here", 500)])
async def test_the_apps_own_error_status_reaches_the_kubelet_but_not_its_words(
    app: App, path: str, status: int
) -> None:
    got, said = await run(get(app.port, path))
    assert got == status
    assert said.endswith(f"port {app.port}: status {status}\n")
    assert "secret" not in said


@pytest.mark.attack_row(7)
@pytest.mark.parametrize("port", sorted(OWN_PORTS))
async def test_an_app_cannot_send_its_probe_to_podlinks_own_ports(app: App, port: int) -> None:
    """Connected to, the health port would run the same probe, and wait for itself."""
    got, said = await run(get(app.port, f"/own/{port}"))
    assert got == 503 and said.endswith(f"a redirect to podlink's own port {port}\n")


async def test_redirects_that_never_end_are_ended(app: App) -> None:
    got, said = await run(get(app.port, "/loop"))
    assert (got, len(app.seen)) == (503, 11)
    assert "more than 10 redirects" in said


async def test_the_request_is_the_one_the_kubelet_would_send(app: App) -> None:
    headers = (("Host", "shop.example"), ("X-Twice", "1"), ("X-Twice", "2"), ("Accept", ""))
    await run(get(app.port, "/a b?q=1&r=%20", headers=headers))
    (asked,) = app.seen
    assert asked.raw_path == "/a%20b?q=1&r=%20"
    assert asked.headers["Host"] == "shop.example"
    assert asked.headers.getall("X-Twice") == ["1", "2"]
    assert asked.headers["User-Agent"].startswith("kube-probe/")
    assert asked.headers["Connection"] == "close"
    assert "Accept" not in asked.headers


async def test_https_is_asked_by_tls_and_its_certificate_not_verified(
    unused_tcp_port: int, tmp_path: Path
) -> None:
    app = App()
    runner = await served(app, unused_tcp_port, self_signed(tmp_path))
    try:
        assert await run(get(app.port, "/", scheme="HTTPS")) == (200, "ok\n")
        got, said = await run(get(app.port, "/", scheme="HTTP"))
        assert got == 400 or "ended before" in said  # plaintext to a TLS port is no success
    finally:
        await runner.cleanup()
    assert app.seen[0].secure


def self_signed(folder: Path) -> ssl.SSLContext:
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app")]),
    )
    day = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(day)
        .not_valid_after(day + dt.timedelta(days=1))  # long expired: nobody minds
        .sign(key, hashes.SHA256())
    )
    pem = folder / "app.pem"
    pem.write_bytes(
        cert.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_tcp_is_well_when_somebody_accepts_and_ill_when_nobody_does(
    app: App, unused_tcp_port_factory: Callable[[], int]
) -> None:
    assert await run(TcpProbe(app.port, 1.0)) == (200, "ok\n")
    got, said = await run(TcpProbe(unused_tcp_port_factory(), 1.0))
    assert got == 503
    assert "refused" in said.lower()


@pytest.mark.parametrize(
    ("state", "service", "status"),
    [(1, "", 200), (1, "shop.Orders", 200), (2, "", 503), (0, "", 503)],
)
async def test_grpc_health_is_asked_for_the_service(state: int, service: str, status: int) -> None:
    asked: list[bytes] = []

    async def check(request: bytes, _: object) -> bytes:
        asked.append(request)
        return bytes((0x08, state)) if state else b""

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        got, _ = await run(GrpcProbe(port, 3.0, service))
    finally:
        await server.stop(None)
    assert got == status
    assert asked == [b"\x0a" + bytes((len(service),)) + service.encode() if service else b""]


async def test_a_grpc_server_without_the_health_service_is_ill() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        got, said = await run(GrpcProbe(port, 3.0, ""))
    finally:
        await server.stop(None)
    assert (got, "UNIMPLEMENTED" in said) == (503, True)


async def test_a_slow_app_is_ill_at_the_probes_own_time_limit(app: App) -> None:
    got, said = await run(get(app.port, "/slow", timeout_s=0.2))
    assert (got, said.endswith("no answer within 0.2 s\n")) == (503, True)


@pytest.mark.parametrize(
    "junk", [b"", b"SMTP ready\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"x" * 70000]
)
async def test_a_server_that_speaks_no_http_is_ill(junk: bytes) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            writer.write(junk)

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        got, _ = await run(get(server.sockets[0].getsockname()[1]))
    assert got == 503


@pytest.mark.attack_row(32)
async def test_many_who_ask_at_once_cost_the_app_one_request(app: App) -> None:
    probe = get(app.port, "/slow")
    table = ProbeTable(AppProbes("127.0.0.1", {"web/liveness": probe}))
    asking = [spawn(table.answer(Request("/probe/web/liveness")), name="ask") for _ in range(50)]
    while not app.seen:
        await asyncio.sleep(0.01)
    app.release.set()
    assert [plain(one) for one in await asyncio.gather(*asking)] == [(200, "ok\n")] * 50
    assert len(app.seen) == 1
    await table.close()


@pytest.mark.attack_row(32)
async def test_on_the_health_port_only_known_probes_are_run(
    app: App, unused_tcp_port_factory: Callable[[], int]
) -> None:
    table = ProbeTable(AppProbes("127.0.0.1", {"web/liveness": get(app.port)}))
    server = HealthServer()
    server.routes.add("/probe/", table.answer)
    port = unused_tcp_port_factory()
    await server.start(port)
    assert (await ask(port, "/probe/web/liveness")).startswith(b"HTTP/1.1 200 ")
    for path in ("/probe/", "/probe/web", "/probe/web/readiness", "/probe/../web/liveness"):
        assert (await ask(port, path)).startswith(b"HTTP/1.1 404 ")
    assert len(app.seen) == 1
    await server.close()
    await table.close()


@pytest.mark.attack_row(32)
async def test_a_hook_is_run_for_whoever_knows_its_secret_alone(app: App) -> None:
    text = json.dumps({"web/pre-stop/" + "5" * 32: {
        "httpGet": {"port": app.port, "path": "/204", "scheme": "HTTP"}, "timeoutSeconds": 3,
    }})  # fmt: skip
    table = ProbeTable(AppProbes("127.0.0.1", read_probes(text)))
    for guess in ("", "/", "/" + "0" * 32, "/" + "5" * 31):
        assert plain(await table.answer(Request(f"/probe/web/pre-stop{guess}")))[0] == 404
    assert app.seen == []
    assert plain(await table.answer(Request("/probe/web/pre-stop/" + "5" * 32)))[0] == 200
    assert len(app.seen) == 1
    await table.close()


async def ask(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with closing(writer):
        return await reader.read()


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{", '{"web": {}}', '{"web/liveness": {}}',
        '{"web/liveness": {"tcpSocket": {"port": 24101}, "timeoutSeconds": 1}}',
        '{"web/liveness": {"tcpSocket": {"port": 80}, "timeoutSeconds": 0}}',
        '{"web/liveness": {"tcpSocket": {"port": "80"}, "timeoutSeconds": 1}}',
        '{"web/liveness": {"exec": {"port": 80}, "timeoutSeconds": 1}}',
        '{"web/pre-stop": {"tcpSocket": {"port": 80}, "timeoutSeconds": 1}}',
        '{"web/odd": {"tcpSocket": {"port": 80}, "timeoutSeconds": 1}}',
    ],
)  # fmt: skip
def test_a_setting_that_is_not_the_injectors_stops_the_proxy_in_one_line(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="PODLINK_PROBES is not as the injector writes it"):
        AppProbes.from_settings(Settings({"POD_IPS": "10.0.0.1", "PODLINK_PROBES": text}))
