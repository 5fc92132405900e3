"""`podlink local up` and `apply --wait` return when what they applied can be used, or say why not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.cluster import Cluster
from local.state import StateDir
from local.supervisor import SOURCE_ROOT

pytestmark = pytest.mark.netns

SLOW = """
import http.server, sys, time
time.sleep(float(sys.argv[1]))
http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)
"""
SHOP = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: app
          image: none
          command: [python3, -c, CODE, "SLEEP"]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
"""
CALLER = """
---
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec: {containers: [{name: app, image: none, command: [sleep, "86400"]}]}
"""
CALL = [
    "python3",
    "-c",
    "import urllib.request as u; print(u.urlopen('http://web').status)",
]


def _shop(sleep_s: float) -> str:
    return SHOP.replace("CODE", repr(SLOW).replace("'", '"')).replace("SLEEP", str(sleep_s))


@pytest.fixture
def name() -> Iterator[str]:
    made = f"waits-{os.getpid()}"
    yield made
    if StateDir.of(made).is_running():
        Cluster.find(made).down()


def _podlink(*argv: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "cli", "local", *argv],
        capture_output=True,
        text=True,
        env=env,
        timeout=150,
    )


def test_up_returns_when_what_it_applied_answers(name: str, tmp_path: Path) -> None:
    shop = tmp_path / "shop.yaml"
    shop.write_text(_shop(2) + CALLER)
    done = _podlink("up", "--bare", "--name", name, "-f", str(shop))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "service/web ready (3 of 3)" in done.stdout
    assert done.stderr == ""
    # The next line of the README, at once.
    called = _podlink("exec", "--name", name, "default/caller", "--", *CALL)
    assert (called.returncode, called.stdout) == (0, "200\n"), called.stderr


def test_no_wait_returns_before_that(name: str, tmp_path: Path) -> None:
    shop = tmp_path / "shop.yaml"
    shop.write_text(_shop(86400) + CALLER)
    done = _podlink("up", "--bare", "--no-wait", "--name", name, "-f", str(shop))
    assert done.returncode == 0, done.stderr
    assert " ready" not in done.stdout


def test_what_is_not_ready_in_time_is_named_and_stays_to_be_looked_at(
    name: str, tmp_path: Path
) -> None:
    shop = tmp_path / "shop.yaml"
    shop.write_text(_shop(86400))
    done = _podlink("up", "--bare", "--timeout", "3", "--name", name, "-f", str(shop))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "Error: deployment/web is not ready after 3 s: 0 of 2 replicas are ready; pod default/web-"
    )
    assert f"podlink local down --name {name}" in line
    assert "export KUBECONFIG=" in done.stdout
    assert len(Cluster.find(name).select("Pod", "default")) == 2


def test_a_pod_that_has_failed_for_good_is_said_at_once(name: str, tmp_path: Path) -> None:
    once = tmp_path / "once.yaml"
    once.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: once}\n"
        "spec: {restartPolicy: Never, containers: [{name: app, image: none, command: ['false'],\n"
        "  readinessProbe: {exec: {command: ['false']}}}]}\n"  # else it is ready until it has ended
    )
    done = _podlink("up", "--bare", "--name", name, "-f", str(once))
    assert done.returncode == 1
    assert "Error: pod/once is not ready: Failed; app is terminated: Error" in done.stderr


def test_apply_waits_if_asked_for_the_new_form_and_the_end_of_the_old(
    name: str, tmp_path: Path
) -> None:
    with Cluster.up(name, [_shop(0)]) as cluster:
        shop = tmp_path / "shop.yaml"
        shop.write_text(_shop(1.5))
        done = _podlink("apply", "--name", name, "--wait", "-f", str(shop))
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("deployment/web ready (1 of 2)\nservice/web ready (2 of 2)\n")
        pods = cluster.select("Pod", "default")
        commands = [pod["spec"]["containers"][0]["command"][-1] for pod in pods]
        assert commands == ["1.5", "1.5"]


def test_a_workload_whose_pods_are_refused_says_why(name: str, tmp_path: Path) -> None:
    shop = tmp_path / "shop.yaml"
    shop.write_text(_shop(0).replace("image: none", "image: none\n          ports: [{x: 1}]"))
    done = _podlink("up", "--bare", "--timeout", "3", "--name", name, "-f", str(shop))
    assert done.returncode == 1
    assert "ports" in done.stderr
