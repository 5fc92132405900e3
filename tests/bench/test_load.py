"""Each load against the real app, and against paths that break."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from bench import load
from bench.app import RESPONSE
from bench.proxies import Site, free_address, text
from tests.patience import PATIENCE_S


def run(site: Site, *options: str) -> dict[str, float]:
    """One load, told to go at once; the result it prints."""
    kind, *rest = options
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", kind, text(site.app), *rest],
        input="go\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ready, result = done.stdout.splitlines()
    assert ready == "ready"
    answer: dict[str, float] = json.loads(result)
    return answer


@pytest.mark.parametrize(
    "options",
    [
        ("requests", "--connections", "8", "--count", "200"),
        ("requests", "--connections", "1", "--count", "7"),
        ("connections", "--concurrency", "4", "--count", "50"),
        ("connections", "--concurrency", "9", "--count", "5"),
    ],
)
def test_a_closed_loop_does_exactly_what_it_is_asked(site: Site, options: Sequence[str]) -> None:
    result = run(site, *options)
    assert result["count"] == int(options[-1])
    assert result["seconds"] > 0


def test_a_bulk_stream_arrives_whole(site: Site) -> None:
    assert run(site, "bulk", "--size-bytes", "3000001")["bytes"] == 3_000_001


def test_a_fixed_rate_is_kept_and_latencies_are_in_order(site: Site) -> None:
    options = ("--connections", "4", "--rate", "500", "--count", "250")
    result = run(site, "latency", *options)
    assert 0 < result["p50_us"] <= result["p99_us"] <= result["max_us"]


def test_a_path_that_ends_in_the_middle_of_an_answer_is_not_a_result() -> None:
    address = free_address()
    with socket.create_server(address) as listener:

        def cut() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(RESPONSE[:20])

        cutter = threading.Thread(target=cut)
        cutter.start()
        with (
            ExitStack() as held,
            pytest.raises(load.PathBroken, match="in the middle of an answer"),
        ):
            load.requests(address, held, connections=1, count=1)
        cutter.join()


def test_a_stall_counts_for_every_request_that_it_delayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One connection, 100 requests/s, and one answer that takes 200 ms: twenty requests are late.

    A generator that waits for an answer before it looks at its schedule would report one.
    """
    monkeypatch.setattr(load, "_barrier", lambda: 0.0)
    address = free_address()
    with socket.create_server(address) as listener:

        def answer_slowly_once() -> None:
            connection, _ = listener.accept()
            with connection:
                for number in range(25 + 50):
                    if not connection.recv(65536):
                        return
                    if number == 30:
                        threading.Event().wait(0.2)
                    connection.sendall(RESPONSE)

        app = threading.Thread(target=answer_slowly_once)
        app.start()
        with ExitStack() as held:
            result = load.latency(address, held, connections=1, rate=100, count=50)
        app.join()
    assert result["max_us"] > 190_000
    assert result["p99_us"] > 150_000
    assert result["p50_us"] < result["p99_us"]


def test_the_app_answers_a_request_that_comes_in_pieces(site: Site) -> None:
    with socket.create_connection(site.app, 5) as connection:
        for byte in load.REQUEST:
            connection.sendall(bytes([byte]))
        got = b""
        while len(got) < len(RESPONSE):
            got += connection.recv(65536)
    assert got == RESPONSE
