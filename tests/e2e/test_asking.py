"""The commands that ask a running mesh, as a person runs them: verify-link, tap, endpoints, links
--watch, dashboard."""

import http.cookiejar
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh import Mesh
from tests.e2e.objects import MESH, PLAIN, account, container, pod, service
from tests.patience import PATIENCE_S

PODLINK = [sys.executable, "-m", "cli"]


@pytest.fixture(scope="module")
def asked(mesh: Mesh) -> Iterator[Mesh]:
    serve = container(["python3", "-m", "http.server", "8080"], listens=8080)
    objects = (
        account("asked"),
        pod("asked", serve, serviceAccountName="asked"),
        service("asked", {"port": 80, "targetPort": 8080}),
    )
    mesh.apply(*objects)
    yield mesh
    mesh.delete(*objects)


def run(mesh: Mesh, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    words = [*PODLINK, *argv, "--kubeconfig", str(mesh.cluster.kubeconfig)]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s)


def test_verify_link_proves_a_path_in_text_for_a_ticket(asked: Mesh) -> None:
    done = run(asked, "verify-link", f"{MESH}/client", f"{MESH}/asked:8080")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        r"✓ source: capture .*canary",
        r"✓ destination: certificate .*sa/asked, serial [0-9a-f]+",
        r"✓ resolution .*is mesh/asked, chosen by pod-ip",
        r"✓ handshake .*TLS 1.3",
        r"✓ destination's identity .*sa/asked",
        r"✓ source's identity .*sa/client",
        r"✓ policy .*allowed by default:allow-meshed",
        r"✓ direct ",
        r"✓ both sides told .*[0-9a-f]{32}",
        r"✓ round trip .*ms",
    ):
        assert re.search(line, done.stdout), (line, done.stdout)


def test_verify_link_goes_to_a_service_and_says_which_of_its_pods_it_was(asked: Mesh) -> None:
    asked.apply(service("pair", {"port": 80, "targetPort": 8080}, app="asked"))
    done = run(asked, "verify-link", f"{MESH}/client", f"{MESH}/pair")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        r"✓ endpoint .*mesh/asked, the only one of Service mesh/pair",
        r"✓ resolution .*:80 is mesh/asked, chosen by only",
        r"✓ destination's identity .*sa/asked",
        r"✓ both sides told .*[0-9a-f]{32}",
    ):
        assert re.search(line, done.stdout), (line, done.stdout)
    asked.delete(service("pair", {"port": 80, "targetPort": 8080}, app="asked"))


def test_verify_link_says_what_is_wrong_and_ends_with_status_1(asked: Mesh) -> None:
    done = run(
        asked, "verify-link", f"{MESH}/client", f"{PLAIN}/stranger:9", "-o", "json", "--wait", "4"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["destination is meshed"]["ok"] is False
    assert run(asked, "verify-link", f"{PLAIN}/stranger", f"{MESH}/asked:8080").returncode == 1
    done = run(asked, "verify-link", f"{MESH}/client", f"{MESH}/nobody:1")
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "there is no pod" in done.stderr
    )


def test_nothing_runs_on_in_the_proxy_when_whoever_tapped_is_killed(asked: Mesh) -> None:
    def taps() -> int:
        argv = ["ps", "-eo", "args"]
        said = asked.cluster.exec(f"{MESH}/asked", argv, container="podlink-proxy").stdout
        return said.count("sidecar.admin /tap")

    def until(wanted: int) -> None:
        for _ in range(100):
            if taps() == wanted:
                return
            time.sleep(0.1)
        raise AssertionError(f"{taps()} run")

    words = [*PODLINK, "tap", f"{MESH}/asked", "--kubeconfig", str(asked.cluster.kubeconfig)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as tap:
        try:
            until(1)
        finally:
            tap.kill()
    until(0)


def test_tap_tells_of_a_link_as_it_ends(asked: Mesh) -> None:
    got: list[str] = []
    words = [*PODLINK, "tap", f"{MESH}/asked", "--count", "1", "-o", "json"]
    words += ["--kubeconfig", str(asked.cluster.kubeconfig)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as tap:
        reader = threading.Thread(target=lambda: got.append(tap.communicate(timeout=PATIENCE_S)[0]))
        reader.start()
        while reader.is_alive():  # the tap is not open at once
            asked.run(f"{MESH}/client", "curl", "-s", "-m", "5", "http://asked.mesh/")
            reader.join(0.5)
    link: dict[str, Any] = json.loads(got[0])
    assert (link["direction"], link["security"], link["verdict"]) == ("inbound", "mtls", "allowed")
    assert link["source_identity"].endswith("/ns/mesh/sa/client")


def test_endpoints_agree_with_the_api(asked: Mesh) -> None:
    asked.run(f"{MESH}/client", "curl", "-s", "-m", "5", "http://asked.mesh/")
    done = run(asked, "endpoints", f"{MESH}/client", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [r for r in json.loads(done.stdout)["endpoints"] if r["service"] == "asked.mesh"]
    assert [(r["pod"], r["sidecar"], r["api"], r["meshed"]) for r in rows] == [
        (f"{MESH}/asked", "ready", "ready", True)
    ]


def test_links_are_watched_as_they_come(asked: Mesh) -> None:
    words = [*PODLINK, "links", "--watch", "--since", "5m", "-n", MESH, "-o", "json"]
    words += ["--kubeconfig", str(asked.cluster.kubeconfig)]
    found = threading.Event()

    def read(watch: subprocess.Popen[str]) -> None:
        assert watch.stdout is not None
        for line in watch.stdout:
            link = json.loads(line)
            if (
                str(link["destination"].get("identity")).endswith("/sa/asked")
                and len(link["sides"]) == 2
            ):
                found.set()
                return

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        reader = threading.Thread(target=read, args=(watch,))
        reader.start()
        try:
            for _ in range(30):
                asked.run(f"{MESH}/client", "curl", "-s", "-m", "5", "http://asked.mesh/")
                if found.wait(1.0):
                    break
        finally:
            watch.terminate()
            reader.join(10)
    assert found.is_set()


@contextmanager
def dashboard(mesh: Mesh) -> Iterator[str]:
    words = [*PODLINK, "dashboard", "--no-browser", "--kubeconfig", str(mesh.cluster.kubeconfig)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        address = ""
        for line in it.stdout:
            if "http://" in line:
                address = line.strip()
                break
        assert address, "no address was printed"
        try:
            yield address
        finally:
            it.terminate()


def get(opener: urllib.request.OpenerDirector, url: str, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode(), ""


@pytest.mark.attack_row(43)
def test_dashboard_shows_the_page_to_the_browser_that_came_in_by_the_address(asked: Mesh) -> None:
    with dashboard(asked) as address:
        base = address.partition("/enter")[0]
        stranger = urllib.request.build_opener()
        assert get(stranger, base + "/graph")[0] == 403
        assert get(stranger, base + "/enter?key=guessed")[0] == 403
        owner = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )
        status, body, policy = get(owner, address, Accept="text/html")
        assert status == 200 and "Needs a decision" in body
        assert policy.startswith("default-src 'none'")
        assert get(owner, base + "/graph?since=1h", Accept="text/html")[0] == 200
        assert get(stranger, address)[0] == 403  # the address holds once
        assert get(owner, base + "/graph", Host="evil.example:80")[0] == 403
        assert get(owner, base + "/x/../../../../secrets")[0] == 403
        assert get(owner, base + "/%2e%2e/%2e%2e/secrets")[0] in (400, 403, 404)


def test_a_report_is_signed_by_the_store_and_verifies_with_the_bundle(
    asked: Mesh, tmp_path: Path
) -> None:
    asked.run(f"{MESH}/client", "curl", "-s", "-m", "5", "http://asked.mesh/")
    done = run(asked, "report", "--since", "1h", "--out", str(tmp_path / "week"))
    assert done.returncode == 0, done.stdout + done.stderr
    body = json.loads((tmp_path / "week.json").read_text())["report"]
    assert body["record"]["chains"]["chains"] > 0
    assert body["record"]["chains"]["before"]["records"] == 0  # all was told to this store
    assert body["cluster"]["not_injected"] == []
    others = body["cluster"]["other_sidecars"]
    assert (others["unread"], others["rows"]) == ("", [])
    for ending in ("json", "html"):
        file = tmp_path / f"week.{ending}"
        verified = run(asked, "report", "verify", str(file))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "ns/podlink-system/sa/podlink-traces" in verified.stdout
        changed = file.read_text().replace('"plaintext_links"', '"plaintext_linkz"', 1)
        file.write_text(changed)
        refused = run(asked, "report", "verify", str(file))
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
