"""Pods as a container sees them: user, files, environment, order, end."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from local.cluster import Cluster
from local.errors import ApiError, BadManifest, TimedOut
from local.linux import CAPABILITIES
from local.node.daemon import needed_paths
from local.supervisor import SOURCE_ROOT
from tests.local.pods import pod, sleeper, web
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns


def test_a_container_runs_as_its_user_with_no_capability_and_a_clean_environment(
    cluster: Cluster,
) -> None:
    security = {"runAsUser": 24100, "runAsGroup": 24200}
    cluster.apply(pod("user", sleeper(securityContext=security, env=[{"name": "A", "value": "1"}])))
    cluster.wait_ready("default/user")
    done = cluster.exec(
        "default/user",
        [
            "sh",
            "-c",
            "id -u; id -g; cat /proc/1/status /proc/self/status | sed -n 's/^CapEff:.//p'; env",
        ],
    )
    uid, gid, first_process, capabilities, *env = done.stdout.splitlines()
    assert int(capabilities, 16) == 0
    assert int(first_process, 16) == 1 << CAPABILITIES.index("KILL")
    if not cluster.single_uid:
        assert (uid, gid) == ("24100", "24200")
    names = {line.partition("=")[0] for line in env}
    assert "A" in names
    assert names <= {
        *("A", "PATH", "HOME", "HOSTNAME", "LANG", "PWD", "PYTHONPATH", "SHLVL", "_", "OLDPWD"),
        *("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_PORT"),
        "KUBERNETES_SERVICE_PORT_HTTPS",
    }


def test_an_added_capability_works_and_reaches_no_further_than_the_pod(cluster: Cluster) -> None:
    admin = {"runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}
    cluster.apply(pod("admin", sleeper(securityContext=admin)))
    cluster.wait_ready("default/admin")
    assert cluster.exec("default/admin", ["nft", "add", "table", "inet", "mine"]).returncode == 0
    assert "table inet mine" not in cluster.node_exec(["nft", "list", "tables"]).stdout
    refused = cluster.exec("default/admin", ["mount", "-t", "tmpfs", "none", "/mnt"])
    assert refused.returncode != 0


def test_the_host_is_read_only_and_homes_are_not_there(cluster: Cluster) -> None:
    cluster.apply(pod("root", sleeper(securityContext={"runAsUser": 0})))
    cluster.wait_ready("default/root")
    script = "touch /usr/x /etc/x; test -w /tmp && echo tmp; find /home /root -xdev -mindepth 1"
    done = cluster.exec("default/root", ["sh", "-c", script])
    first, *seen = done.stdout.splitlines()
    assert first == "tmp"
    assert done.stderr.count("Read-only file system") == 2
    # Of a checkout or an interpreter below a home, the way to it is there, and nothing beside it.
    needed = {Path(p).resolve() for p in needed_paths()} | {Path(p) for p in needed_paths()}
    assert {Path(p) for p in seen} <= needed | {
        parent for path in needed for parent in path.parents
    }


def test_a_read_only_root_leaves_only_volumes_to_write_to(cluster: Cluster) -> None:
    mounts = [{"name": "own", "mountPath": "/run/own"}, {"name": "own", "mountPath": "/tmp"}]
    container = sleeper(
        securityContext={"readOnlyRootFilesystem": True, "runAsUser": 24100}, volumeMounts=mounts
    )
    cluster.apply(pod("frozen", container, volumes=[{"name": "own", "emptyDir": {}}]))
    cluster.wait_ready("default/frozen")
    script = "touch /run/own/a && ls /tmp; touch /var/tmp/b; touch /run/c"
    done = cluster.exec("default/frozen", ["sh", "-c", script])
    assert done.stdout == "a\n"
    assert done.stderr.count("Read-only file system") == 2


def test_the_downward_api_and_config_maps_reach_the_container_and_follow_changes(
    cluster: Cluster,
) -> None:
    config = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: red}\n---\n"
    )
    env = [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {
            "name": "COLOUR",
            "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}},
        },
        {"name": "BOTH", "value": "$(NAME)-$(COLOUR)-$$(X)"},
    ]
    mounts = [{"name": "settings", "mountPath": "/etc/podlink-test/deep"}]
    cluster.apply(
        pod(
            "config",
            sleeper(env=env, volumeMounts=mounts),
            volumes=[{"name": "settings", "configMap": {"name": "settings"}}],
        )
    )
    _until(lambda: "configMap" in json.dumps(cluster.get("Pod", "default/config")["status"]))
    with pytest.raises(TimedOut, match='configMap "settings" not found'):
        cluster.wait_ready("default/config", timeout_s=0.1)  # it waits for its ConfigMap
    cluster.apply(config)
    cluster.wait_ready("default/config")
    ip = cluster.get("Pod", "default/config")["status"]["podIP"]
    script = "echo $IP $BOTH; cat /etc/podlink-test/deep/colour"
    assert cluster.exec("default/config", ["sh", "-c", script]).stdout == (
        f"{ip} config-red-$(X)\nred"
    )
    cluster.apply(config.replace("red", "blue"))
    _until(
        lambda: (
            cluster.exec("default/config", ["cat", mounts[0]["mountPath"] + "/colour"]).stdout
            == "blue"
        )
    )


def test_init_containers_run_in_order_and_wait_for_a_sidecar_to_have_started(
    cluster: Cluster,
) -> None:
    shared = [{"name": "shared", "mountPath": "/shared"}]

    def step(name: str, script: str, **more: object) -> dict[str, object]:
        command = ["sh", "-c", script]
        return {"name": name, "command": command, "volumeMounts": shared, **more}

    sidecar = step(
        "sidecar",
        "sleep 0.4; touch /shared/up; echo sidecar >> /shared/log;"
        "trap 'echo sidecar ends >> /proc/1/fd/2; exit 0' TERM; while :; do sleep 0.05; done",
        restartPolicy="Always",
        startupProbe={"exec": {"command": ["test", "-e", "/shared/up"]}, "periodSeconds": 1},
    )
    cluster.apply(
        pod(
            "order",
            step("app", "echo app >> /shared/log; exec sleep 3600"),
            initContainers=[
                step("first", "sleep 0.1; echo first >> /shared/log"),
                sidecar,
                step("last", "echo last >> /shared/log"),
            ],
            volumes=[{"name": "shared", "emptyDir": {}}],
        )
    )
    cluster.wait_ready("default/order")

    def log() -> list[str]:
        return cluster.exec("default/order", ["cat", "/shared/log"]).stdout.split()

    _until(lambda: len(log()) == 4)
    assert log() == ["first", "sidecar", "last", "app"]
    status = cluster.get("Pod", "default/order")["status"]
    started = {s["name"]: s for s in status["initContainerStatuses"]}
    assert started["sidecar"]["state"].keys() == {"running"}
    assert started["first"]["state"]["terminated"]["exitCode"] == 0


def test_a_deleted_pod_ends_its_app_before_its_sidecar(cluster: Cluster) -> None:
    def told(name: str, seconds: float) -> str:
        end = f"sleep {seconds}; date +%s%N > /data/{name}; exit 0"
        return f"trap '{end}' TERM; while :; do sleep 0.02; done"

    data = [{"name": "data", "mountPath": "/data"}]
    side = {
        "name": "side",
        "restartPolicy": "Always",
        "command": ["sh", "-c", told("side", 0)],
        "volumeMounts": data,
    }
    app = {"name": "app", "command": ["sh", "-c", told("app", 0.3)], "volumeMounts": data}
    # The volume outlives the pod in this test only because it lies on the node, outside of it.
    place = f"/tmp/podlink-ends-{cluster.name}"
    made = cluster.node_exec(["sh", "-c", f"mkdir -m 777 {place}"])
    assert made.returncode == 0
    try:
        volumes = [{"name": "data", "hostPath": {"path": place}}]
        cluster.apply(pod("ends", app, initContainers=[side], volumes=volumes))
        cluster.wait_ready("default/ends")
        cluster.delete(pod("ends", app))
        cluster.wait_gone("Pod", "default/ends")
        ends = cluster.node_exec(["cat", f"{place}/app", f"{place}/side"]).stdout.split()
        assert len(ends) == 2
        assert int(ends[0]) < int(ends[1])
    finally:
        cluster.node_exec(["rm", "-rf", place])


def test_a_container_that_fails_is_restarted_and_its_last_log_is_kept(cluster: Cluster) -> None:
    script = "echo run; exit 7"
    cluster.apply(pod("crash", {"name": "app", "command": ["sh", "-c", script]}))
    _until(lambda: _app_status(cluster, "crash").get("restartCount", 0) >= 1)
    status = _app_status(cluster, "crash")
    assert status["lastState"]["terminated"]["exitCode"] == 7
    assert cluster.logs("default/crash", previous=True) == "run\n"


def test_a_command_that_does_not_exist_is_named(cluster: Cluster) -> None:
    cluster.apply(pod("absent", {"name": "app", "command": ["no-such-program"]}))
    with pytest.raises(TimedOut, match=r"no-such-program|back-off"):
        cluster.wait_ready("default/absent", timeout_s=0.5)
    events = cluster.select("Event", "default", fieldSelector="involvedObject.name=absent")
    assert any("No such file or directory" in e["message"] for e in events)


def test_a_pod_that_never_restarts_is_complete(cluster: Cluster) -> None:
    cluster.apply(pod("once", {"name": "app", "command": ["true"]}, restartPolicy="Never"))
    _until(lambda: cluster.get("Pod", "default/once")["status"].get("phase") == "Succeeded")


def test_a_failing_liveness_probe_restarts_the_container(cluster: Cluster) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "periodSeconds": 1}
    cluster.apply(pod("live", web(livenessProbe={**probe, "failureThreshold": 1})))
    cluster.wait_ready("default/live")
    cluster.exec("default/live", ["touch", "/tmp/sick"])
    _until(lambda: _app_status(cluster, "live").get("restartCount", 0) == 1, 10)


def test_exec_returns_output_and_status_and_is_killed_at_its_time_limit(cluster: Cluster) -> None:
    cluster.apply(pod("target"))
    cluster.wait_ready("default/target")
    done = cluster.exec("default/target", ["sh", "-c", "cat; echo no >&2; exit 3"], feed=b"yes")
    assert (done.returncode, done.stdout, done.stderr) == (3, "yes", "no\n")
    with pytest.raises(TimedOut):
        cluster.exec("default/target", ["sleep", "47"], timeout_s=0.3)
    _until(lambda: "sleep 47" not in cluster.exec("default/target", ["ps", "ax"]).stdout)
    with pytest.raises(ApiError, match="no pod 'nobody'"):
        cluster.exec("default/nobody", ["true"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"containers": []}, "spec.containers: Required value"),
        ({"containers": [{"name": "a"}]}, r"spec.containers\[0\].command: Required value"),
        ({"hostPID": True}, "spec.hostPID: not supported"),
        ({"volumes": [{"name": "v", "nfs": {}}]}, r"spec.volumes\[0\].nfs: not supported"),
        ({"serviceAccountName": "ghost"}, 'serviceaccount "ghost" not found'),
    ],
)
def test_a_malformed_pod_is_refused_by_its_field(
    cluster: Cluster, change: dict[str, object], message: str
) -> None:
    wrong = json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "wrong"},
            "spec": {"containers": [sleeper()], **change},
        },
        indent=1,
    )
    with pytest.raises(BadManifest, match=message):
        cluster.apply(wrong)
    assert "wrong" not in {p["metadata"]["name"] for p in cluster.select("Pod", "default")}


def _app_status(cluster: Cluster, name: str) -> dict[str, Any]:
    found = cluster.get("Pod", f"default/{name}").get("status", {}).get("containerStatuses")
    return dict(found[0]) if found else {}


def _until(holds: object, timeout_s: float = PATIENCE_S) -> None:
    assert callable(holds)
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.05)


def test_a_command_that_cannot_run_is_named_with_its_container(cluster: Cluster) -> None:
    cluster.apply(pod("asked"))
    cluster.wait_ready("default/asked")
    done = _podlink_local("exec", "--name", cluster.name, "default/asked", "--", "nosuchcmd")
    assert done.returncode == 127
    said = "container 'app' of default/asked cannot run nosuchcmd: No such file or directory"
    assert done.stderr == f"Error: {said}\n"
    absent = _podlink_local("exec", "--name", cluster.name, "web", "--", "id")
    assert absent.returncode == 1
    assert "no pod 'web' runs in namespace 'default'" in absent.stderr
    assert "NAMESPACE/POD" in absent.stderr
    other = _podlink_local("exec", "--name", "absent", "web", "--", "id")
    assert cluster.name in other.stderr
    assert "pass --name" in other.stderr


def test_a_command_waits_for_a_pod_that_is_still_starting(cluster: Cluster) -> None:
    slow = {"name": "slow", "command": ["sleep", "1"]}
    cluster.apply(pod("starting", initContainers=[slow]))
    done = _podlink_local("exec", "--name", cluster.name, "default/starting", "--", "echo", "there")
    assert (done.returncode, done.stdout) == (0, "there\n")


def _podlink_local(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "local", *argv],
        capture_output=True,
        text=True,
        cwd=SOURCE_ROOT,
        timeout=PATIENCE_S,
        check=False,
    )
