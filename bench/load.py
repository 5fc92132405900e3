"""The load: five ways to use a path to `bench.app`, each a process that reports one JSON line.

    python -m bench.load requests 127.0.0.1:9100 --connections 64 --count 20000

It warms the path, prints `ready`, waits for a line on standard input, does the measured work,
prints its result and holds its connections until standard input ends. So `bench.rounds` can read
the proxies' CPU time before and after exactly that work.

Bare epoll and select: the generator shares a CPU with the app and must not be the bottleneck.
"""

import argparse
import ctypes
import inspect
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from bench.app import RESPONSE, bulk_head

REQUEST = b"GET / HTTP/1.1\r\nHost: app.bench\r\nUser-Agent: podlink-bench\r\nAccept: */*\r\n\r\n"
_PR_SET_TIMERSLACK = 29
_WARM_BULK = 16 * 1024 * 1024
_GIVE_UP_S = 30.0

Address = tuple[str, int]
Result = dict[str, float]


class PathBroken(SystemExit):
    """A connection ended or stalled in mid-load: the figures would mean nothing."""


def _connect(address: Address, held: ExitStack) -> socket.socket:
    connection = held.enter_context(socket.create_connection(address, _GIVE_UP_S))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _barrier() -> float:
    """Say that the path is warm, wait to be told to go, and return the time of the start."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.monotonic()


def _events(epoll: select.epoll) -> list[tuple[int, int]]:
    events = epoll.poll(_GIVE_UP_S)
    if not events:
        raise PathBroken(f"the path stalled for {_GIVE_UP_S:.0f} s")
    return events


def _received(connection: socket.socket) -> int:
    data = connection.recv(65536)
    if not data:
        raise PathBroken("the path closed a connection in the middle of an answer")
    return len(data)


def requests(address: Address, held: ExitStack, *, connections: int, count: int) -> Result:
    """`count` small requests over kept-alive connections, each asking again once answered."""
    epoll, peers, got = held.enter_context(select.epoll()), {}, {}
    for _ in range(connections):
        connection = _connect(address, held)
        peers[connection.fileno()], got[connection.fileno()] = connection, 0
        epoll.register(connection.fileno(), select.EPOLLIN)

    def ask(total: int) -> None:
        started = done = 0
        for connection in peers.values():
            connection.send(REQUEST)
            started += 1
        while done < started:
            for fd, _ in _events(epoll):
                got[fd] += _received(peers[fd])
                if got[fd] < len(RESPONSE):
                    continue
                got[fd] = 0
                done += 1
                if started < total:
                    started += 1
                    peers[fd].send(REQUEST)

    ask(10 * connections)
    began = _barrier()
    ask(count)
    return {"count": count, "seconds": time.monotonic() - began}


def connections(address: Address, held: ExitStack, *, concurrency: int, count: int) -> Result:
    """`count` connections, one request on each, `concurrency` at a time; this side closes first."""
    epoll = held.enter_context(select.epoll())

    def one(open_: dict[int, socket.socket]) -> None:
        connection = _connect(address, ExitStack())  # closed by us, one by one
        connection.send(REQUEST)
        open_[connection.fileno()] = connection
        epoll.register(connection.fileno(), select.EPOLLIN)

    def go(total: int) -> None:
        open_: dict[int, socket.socket] = {}
        got: dict[int, int] = {}
        started = done = 0
        while done < total:
            while len(open_) < concurrency and started < total:
                one(open_)
                started += 1
            for fd, _ in _events(epoll):
                got[fd] = got.get(fd, 0) + _received(open_[fd])
                if got[fd] < len(RESPONSE):
                    continue
                del got[fd]
                epoll.unregister(fd)
                open_.pop(fd).close()
                done += 1

    go(4 * concurrency)
    began = _barrier()
    go(count)
    return {"count": count, "seconds": time.monotonic() - began}


def bulk(address: Address, held: ExitStack, *, size_bytes: int) -> Result:
    """One stream of `size_bytes` from the app, after a short one to warm the path."""
    connection = _connect(address, held)
    buffer = bytearray(256 * 1024)

    def fetch(size: int) -> None:
        connection.sendall(REQUEST.replace(b"/", b"/bulk/%d" % size, 1))
        left = size + len(bulk_head(size))
        while left:
            fresh = connection.recv_into(buffer, min(left, len(buffer)))
            if not fresh:
                raise PathBroken("the path closed a bulk stream in the middle")
            left -= fresh

    fetch(_WARM_BULK)
    began = _barrier()
    fetch(size_bytes)
    return {"bytes": size_bytes, "seconds": time.monotonic() - began}


def latency(
    address: Address, held: ExitStack, *, connections: int, rate: int, count: int
) -> Result:
    """`count` requests at a fixed rate, each timed from the moment it was due to be sent.

    The schedule does not wait for answers: a request that finds every connection busy waits its
    turn, and that wait counts. A stall of the path is so seen by every request it delayed, not only
    by the one that was on the wire (Gil Tene's "coordinated omission").
    """
    # The kernel may delay a timer by 50 us to save power; here that would count as latency.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    idle = deque(_connect(address, held) for _ in range(connections))

    def go(total: int) -> list[float]:
        took: list[float] = []
        busy: dict[socket.socket, float] = {}
        got: dict[socket.socket, int] = {}
        began = time.perf_counter()
        sent = 0
        while len(took) < total:
            now = time.perf_counter()
            while sent < total and idle and now >= (due := began + sent / rate):
                connection = idle.popleft()
                connection.send(REQUEST)
                busy[connection] = due
                sent += 1
            wait = _GIVE_UP_S
            if sent < total and idle:
                wait = max(0.0, began + sent / rate - time.perf_counter())
            readable, _, _ = select.select(list(busy), [], [], wait)
            if not readable and wait == _GIVE_UP_S:
                raise PathBroken(f"the path stalled for {_GIVE_UP_S:.0f} s")
            for connection in readable:
                got[connection] = got.get(connection, 0) + _received(connection)
                if got[connection] < len(RESPONSE):
                    continue
                took.append(time.perf_counter() - busy.pop(connection))
                got[connection] = 0
                idle.append(connection)
        return took

    go(rate // 4)
    _barrier()
    took = sorted(go(count))
    return {
        "count": count,
        "p50_us": 1e6 * took[len(took) // 2],
        "p99_us": 1e6 * took[min(len(took) - 1, len(took) * 99 // 100)],
        "max_us": 1e6 * took[-1],
    }


def idle(address: Address, held: ExitStack, *, connections: int) -> Result:
    """Open connections that have each been used once, and then lie idle."""
    for _ in range(connections):
        connection = _connect(address, held)
        connection.send(REQUEST)
        left = len(RESPONSE)
        while left:
            left -= _received(connection)
    _barrier()
    return {"count": connections}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.load", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, run in _KINDS.items():
        kind = kinds.add_parser(name)
        kind.add_argument("address")
        for parameter in inspect.signature(run).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                option = "--" + parameter.name.replace("_", "-")
                kind.add_argument(option, type=int, required=True)
    options = vars(parser.parse_args())
    run = _KINDS[options.pop("kind")]
    host, _, port = options.pop("address").rpartition(":")
    with ExitStack() as held:
        print(json.dumps(run((host, int(port)), held, **options)), flush=True)
        sys.stdin.read()


_KINDS: dict[str, Callable[..., Result]] = {
    "requests": requests,
    "connections": connections,
    "bulk": bulk,
    "latency": latency,
    "idle": idle,
}

if __name__ == "__main__":
    main()
