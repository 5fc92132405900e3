"""Small servers and clients that run inside pods: `python -m tests.e2e.apps <command> ...`.

They know nothing of podlink. Servers log one line per connection and one for what it brought, so a
test can say what an app saw. Clients print one line of JSON that says how it went. Real programs
(nginx, PostgreSQL, Redis, curl, nc) are used wherever one exists for the job.
"""

import asyncio
import hashlib
import json
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

GREETING = b"220 ready\r\n"
_CHUNK = 1 << 16

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[int]]


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Speak first, as SMTP, FTP and MySQL servers do; then echo."""
    writer.write(GREETING)
    return await _echo(reader, writer)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    size = 0
    while data := await reader.read(_CHUNK):
        size += len(data)
        writer.write(data)
        await writer.drain()
    return size


async def _whoami(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Say who calls, by address and port, to whoever says something; and log it."""
    said = len(await reader.read(_CHUNK))
    ip, port, *_ = writer.get_extra_info("peername")
    ip = ip.removeprefix("::ffff:")
    print(f"caller {ip} {port}", flush=True)
    writer.write(f"{ip} {port}".encode())
    return said


def _pour(amount: int) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Answer only when the client has ended its own direction."""
        size = 0
        while data := await reader.read(_CHUNK):
            size += len(data)
        for piece in _pieces(amount):
            writer.write(piece)
            await writer.drain()
        return size

    return talk


def _pieces(amount: int) -> "list[bytes]":
    """`amount` bytes that are not all alike, in pieces."""
    block = hashlib.sha256(b"podlink").digest() * (_CHUNK // 32)
    return [block[: min(_CHUNK, amount - at)] for at in range(0, amount, _CHUNK)]


def poured_sha256(amount: int) -> str:
    """The SHA-256 of what `pour` sends."""
    digest = hashlib.sha256()
    for piece in _pieces(amount):
        digest.update(piece)
    return digest.hexdigest()


async def _serve(talk: Talk, port: int, host: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        print("accepted", flush=True)
        size = 0
        with suppress(OSError):
            size = await talk(reader, writer)
        print(f"received {size}", flush=True)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=4096)
    else:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
        )
    server = await asyncio.start_server(serve, sock=listener)
    await server.serve_forever()


def _try(host: str, port: int, word: bytes, timeout_s: float) -> dict[str, object]:
    """Connect, say `word` (nothing if empty), read until something comes or it ends."""
    began, got, error = time.monotonic(), b"", ""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as sock:
            if word:
                sock.sendall(word)
            got = sock.recv(_CHUNK)
    except OSError as e:
        error = type(e).__name__
    return {
        "got": got.decode("latin-1"),
        "error": error,
        "seconds": round(time.monotonic() - began, 3),
    }


def _knock(host: str, port: int, word: bytes) -> None:
    """Try again and again until standard input ends; one line per change of outcome."""
    before: object = None
    count: dict[str, int] = {}
    while not _stdin_ended():
        done = _try(host, port, word, 10.0)
        outcome = str(done["error"] or ("answered" if done["got"] else "ended"))
        count[outcome] = count.get(outcome, 0) + 1
        if outcome != before:
            print(json.dumps({"outcome": outcome}), flush=True)
            before = outcome
        time.sleep(0.02)
    print(json.dumps({"count": count}), flush=True)


def _stdin_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _hold(host: str, port: int) -> None:
    """Open a connection, prove that it works, then wait for its end and say how that was."""
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(b"hello")
        sock.recv(5, socket.MSG_WAITALL)
        print(json.dumps({"open": True}), flush=True)
        sock.settimeout(90)
        try:
            ended = "end" if not sock.recv(1) else "data"
        except OSError as e:
            ended = type(e).__name__
    print(json.dumps({"ended": ended}), flush=True)


def _trickle(host: str, port: int) -> None:
    """Send a little now and then, so that data is always under way, until the connection ends."""
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(b"hello")
        sock.recv(5, socket.MSG_WAITALL)
        print(json.dumps({"open": True}), flush=True)
        began = time.monotonic()
        try:
            while time.monotonic() - began < 40:
                sock.sendall(b"x" * 100)
                time.sleep(0.1)
            ended = "never"
        except OSError as e:
            ended = type(e).__name__
    print(json.dumps({"ended": ended}), flush=True)


def _talk(host: str, port: int) -> None:
    """Send a little now and then and read what comes back, so that data is under way in both
    directions, until the connection ends."""
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(b"hello")
        sock.recv(5, socket.MSG_WAITALL)
        print(json.dumps({"open": True}), flush=True)
        sock.settimeout(0.05)
        began, ended = time.monotonic(), "never"
        while time.monotonic() - began < 90:
            try:
                sock.sendall(b"x" * 100)
                sock.recv(_CHUNK)
            except TimeoutError:
                continue
            except OSError as e:
                ended = type(e).__name__
                break
    print(json.dumps({"ended": ended}), flush=True)


def _drip(host: str, port: int, count: int) -> None:
    """Talk to an echo server for a while, piece by piece, and check every piece."""
    with socket.create_connection((host, port), timeout=10) as sock:
        good = 0
        try:
            for number in range(count):
                piece = f"{number:>10}".encode() * 50
                sock.sendall(piece)
                if sock.recv(len(piece), socket.MSG_WAITALL) != piece:
                    break
                good += 1
                if number == 0:
                    print(json.dumps({"open": True}), flush=True)
                time.sleep(0.1)
        except OSError as e:
            print(json.dumps({"good": good, "ended": type(e).__name__}), flush=True)
            return
    print(json.dumps({"good": good, "ended": "end"}), flush=True)


def _half_close(host: str, port: int, amount: int) -> dict[str, object]:
    """Send `amount` bytes, end this direction, then read to the end."""
    digest, size = hashlib.sha256(), 0
    with socket.create_connection((host, port), timeout=30) as sock:
        for piece in _pieces(amount):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(_CHUNK):
            digest.update(data)
            size += len(data)
    return {"size": size, "sha256": digest.hexdigest()}


async def _burst(host: str, port: int, amount: int) -> dict[str, int]:
    """Open `amount` connections at once; none is closed before each was answered or has failed."""
    settled = 0
    all_settled = asyncio.Event()
    outcomes: dict[str, int] = {}

    def settle() -> None:
        nonlocal settled
        settled += 1
        if settled == amount:
            all_settled.set()

    async def one(number: int) -> str:
        word = f"caller {number}\n".encode()
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(word)
                answer = await reader.readexactly(len(word))
        except (OSError, EOFError, TimeoutError) as e:
            settle()
            return type(e).__name__
        settle()
        await all_settled.wait()
        try:
            writer.write_eof()
            rest = await reader.read()
        except OSError as e:
            return f"{type(e).__name__} at the end"
        finally:
            writer.close()
        return "answered" if answer == word and not rest else "wrong answer"

    for outcome in await asyncio.gather(*(one(number) for number in range(amount))):
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


async def _grpc_health(port: int) -> None:
    """A gRPC server whose health service says SERVING for "shop" and NOT_SERVING for the rest."""
    import grpc.aio

    async def check(request: bytes, context: Any) -> bytes:
        print(f"caller {context.peer().removeprefix('ipv4:').rpartition(':')[0]}", flush=True)
        return b"\x08\x01" if request == b"\x0a\x04shop" else b"\x08\x02"

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)
    server.add_generic_rpc_handlers((health,))
    server.add_insecure_port(f"[::]:{port}")
    await server.start()
    await server.wait_for_termination()


def main(argv: list[str]) -> None:
    command, *rest = argv
    match command:
        case "greet" | "echo" | "whoami":
            talk = {"greet": _greet, "echo": _echo, "whoami": _whoami}[command]
            asyncio.run(_serve(talk, int(rest[0]), rest[1] if len(rest) > 1 else ""))
        case "grpc-health":
            asyncio.run(_grpc_health(int(rest[0])))
        case "pour":
            asyncio.run(_serve(_pour(int(rest[1])), int(rest[0]), ""))
        case "try":
            word = rest[2].encode() if len(rest) > 2 else b""
            patience_s = float(rest[3]) if len(rest) > 3 else 30.0
            print(json.dumps(_try(rest[0], int(rest[1]), word, patience_s)))
        case "knock":
            _knock(rest[0], int(rest[1]), rest[2].encode())
        case "hold":
            _hold(rest[0], int(rest[1]))
        case "trickle":
            _trickle(rest[0], int(rest[1]))
        case "talk":
            _talk(rest[0], int(rest[1]))
        case "drip":
            _drip(rest[0], int(rest[1]), int(rest[2]))
        case "half-close":
            print(json.dumps(_half_close(rest[0], int(rest[1]), int(rest[2]))))
        case "burst":
            print(json.dumps(asyncio.run(_burst(rest[0], int(rest[1]), int(rest[2])))))
        case _:
            raise SystemExit(f"unknown command {command!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
