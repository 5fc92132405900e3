"""A real trace store: `python -m traces` as a process of its own, on ports of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-for-tests"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class StoreProcess:
    """Start it, ask it, kill it, start it again on the same file."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    review_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def db(self) -> Path:
        return self.folder / "traces.db"

    def start_and_fail(self) -> str:
        """Start it with a mistake in its settings; returns the one line that it leaves."""
        process = self._launch()
        assert process.wait(15) == 1
        [line] = self.log().splitlines()
        return line

    def start(self) -> None:
        process = self._launch()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.url("/healthz"), timeout=PATIENCE_S).close()
                socket.create_connection(("127.0.0.1", self.grpc_port), 1).close()
                return
            assert process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def _launch(self) -> subprocess.Popen[bytes]:
        token = self.folder / "token"
        token.write_text(TOKEN + "\n")
        env = {
            **os.environ,
            "PODLINK_TRACES_DB": str(self.db),
            "PODLINK_TRACES_TOKEN_FILE": str(token),
            "PODLINK_TRACES_HOST": "127.0.0.1",
            "PODLINK_TRACES_GRPC_PORT": str(self.grpc_port),
            "PODLINK_TRACES_HTTP_PORT": str(self.http_port),
            "PODLINK_TRACES_REVIEW_PORT": str(self.review_port),
            "PODLINK_INSECURE_OTLP": "true",
            **self.settings,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "traces"], cwd=ROOT, env=env, stderr=log
            )
        return self.process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.review_port}{path}"

    def ask(self, path: str, token: str | None = TOKEN) -> tuple[int, Any]:
        """Status and decoded JSON of a GET on the review API."""
        request = urllib.request.Request(self.url(path))
        if token is not None:
            request.add_header("X-Podlink-Token", token)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.load(e)

    def links(self, query: str = "") -> list[dict[str, Any]]:
        status, body = self.ask(f"/api/links?{query}")
        assert status == 200, body
        found: list[dict[str, Any]] = body["links"]
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    it = StoreProcess(tmp_path)
    it.start()
    yield it
    it.stop()
