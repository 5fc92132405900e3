"""The CNI plugin: its answers, and capture in real network namespaces, put there by the plugin."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cni.config import Call
from cni.install import NAME, chain, chained, claim, owned, put_plugin, take_away, unchain
from cni.plugin import CAPABILITY, Refused, answer, plan_of, read_conf
from kit.contract import CAPTURE_ANNOTATION
from tests.patience import PATIENCE_S
from tests.sidecar.capture.test_apply import ROOT, Pod
from tests.sidecar.capture.test_source import proven

PREVIOUS = {"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.2/24"}]}
needs_root = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]  # fmt: skip


def conf(annotation: str | None = "{}", **more: Any) -> dict[str, Any]:
    annotations = {} if annotation is None else {CAPTURE_ANNOTATION: annotation}
    runtime = {"runtimeConfig": {CAPABILITY: annotations}}
    return {"cniVersion": "1.0.0", "name": "k8s", "type": "podlink", "prevResult": PREVIOUS,
            **runtime, **more}  # fmt: skip


def call(command: str = "ADD", netns: str = "", namespace: str = "shop") -> Call:
    return Call(command, netns, "eth0", namespace, "web-0", ("nft",))


def test_version_says_what_is_spoken() -> None:
    said = answer(call("VERSION"), {"cniVersion": "1.0.0"})
    assert isinstance(said, dict) and "1.0.0" in said["supportedVersions"]


@pytest.mark.parametrize("annotations", [conf(None), {**conf(), "runtimeConfig": {}}])
def test_pods_that_are_none_of_ours_pass_untouched(annotations: dict[str, Any]) -> None:
    assert answer(call(netns="/nowhere"), annotations) == PREVIOUS


def test_excluded_namespaces_pass_untouched() -> None:
    whole = conf(excludeNamespaces=["kube-system"])
    assert answer(call(netns="/nowhere", namespace="kube-system"), whole) == PREVIOUS


def test_what_is_skipped_comes_from_the_annotation() -> None:
    said = {"skip-inbound-ports": "9100", "skip-outbound-ports": "25,9000-9010",
            "skip-subnets": "192.0.2.0/24,2001:db8::/32"}  # fmt: skip
    plan = plan_of(call(), conf(json.dumps(said)))
    assert plan is not None
    assert "9000-9010" in plan.ruleset() and "2001:db8::/32" in plan.ruleset()
    assert plan.exempt_by == "uid"


@pytest.mark.attack_row(34)
@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        '{"skip-inbound-ports": "x"}',
        '{"skip-subnets": "a; flush"}',
        '{"skip-outbound-ports": "1-8,10-65535"}',
        '{"skip-inbound-ports": "1-4097"}',
        '{"skip-subnets": "0.0.0.0/1,128.0.0.0/1"}',
        '{"skip-subnets": "::/0"}',
        '{"skip-subnets": "11.0.0.0/8,12.0.0.1"}',
        '{"source-address": "node"}',
        '{"source-address": ["peer"]}',
    ],
)
def test_an_annotation_that_cannot_be_read_keeps_the_pod_from_starting(said: str) -> None:
    with pytest.raises(Refused, match="shop/web-0"):
        answer(call(), conf(said))


@pytest.mark.parametrize(
    ("raw", "code"), [(b"{", 6), (b"[]", 6), (b"[" * 100_000, 6)], ids=["cut", "list", "deep"]
)
def test_garbage_on_stdin_has_the_code_of_the_specification(raw: bytes, code: int) -> None:
    with pytest.raises(Refused) as caught:
        read_conf(raw)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("made", "whole", "code"),
    [
        (call("ADD"), conf(None, cniVersion="9.0.0"), 1),
        (call("EXPLODE"), conf(None), 7),
        (call("ADD"), {**conf(None), "prevResult": None}, 7),
        (call("ADD", netns="/nowhere"), conf(), 999),
    ],
)
def test_calls_that_cannot_be_answered_fail(made: Call, whole: dict[str, Any], code: int) -> None:
    with pytest.raises(Refused) as caught:
        answer(made, whole)
    assert caught.value.code == code


# --- chaining -----------------------------------------------------------------------------------

CALICO = {"name": "k8s-pod-network", "cniVersion": "0.3.1",
          "plugins": [{"type": "calico"}, {"type": "portmap", "snat": True}]}  # fmt: skip


def test_it_is_chained_last_once_and_taken_out_again(tmp_path: Path) -> None:
    path = tmp_path / "10-calico.conflist"
    path.write_text(json.dumps(CALICO))
    (tmp_path / "99-other.conflist").write_text("{}")
    assert chain(tmp_path, ["kube-system"]) is True
    made = json.loads(path.read_text())
    assert [p["type"] for p in made["plugins"]] == ["calico", "portmap", "podlink"]
    assert made["plugins"][-1]["capabilities"] == {CAPABILITY: True}
    assert chain(tmp_path, ["kube-system"]) is False
    unchain(tmp_path)
    assert json.loads(path.read_text()) == CALICO


def test_a_single_plugins_configuration_becomes_a_list_and_comes_back(tmp_path: Path) -> None:
    single = {"name": "n", "cniVersion": "0.3.1", "type": "bridge", "bridge": "cni0"}
    (tmp_path / "10-bridge.conf").write_text(json.dumps(single))
    chain(tmp_path, [])
    made = json.loads((tmp_path / "10-bridge.conflist").read_text())
    assert [p["type"] for p in made["plugins"]] == ["bridge", "podlink"]
    unchain(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10-bridge.conf"]
    assert json.loads((tmp_path / "10-bridge.conf").read_text()) == single


def test_what_is_no_configuration_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "10-odd.conflist").write_text('{"hello": 1}')
    with pytest.raises(ValueError, match="no CNI network configuration"):
        chain(tmp_path, [])
    with pytest.raises(ValueError, match="no CNI configuration"):
        chain(tmp_path / "..", [])
    assert chained(chained(CALICO, ["b", "a"]), ["a", "b"]) == chained(CALICO, ["a", "b"])


def installer(folder: Path, owner: str) -> subprocess.Popen[bytes]:
    settings = {"PODLINK_CNI_BIN_DIR": str(folder / "bin"), "PODLINK_CNI_CONF_DIR": str(folder / "conf"),
                "PODLINK_CNI_OWNER": owner}  # fmt: skip
    script = "import cni.install as one; one.put_plugin = lambda _: None; one.main()"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def types(folder: Path) -> list[str]:
    return [
        p["type"] for p in json.loads((folder / "conf/10-calico.conflist").read_text())["plugins"]
    ]


def wait(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("not within 15 s")


def test_an_update_never_leaves_the_chain_and_the_last_one_takes_the_plugin_along(
    tmp_path: Path,
) -> None:
    for name in ("bin", "conf"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf/10-calico.conflist").write_text(json.dumps(CALICO))
    ours = ["calico", "portmap", "podlink"]
    old = installer(tmp_path, "old")
    wait(lambda: types(tmp_path) == ours)
    new = installer(tmp_path, "new")
    wait(lambda: owned(tmp_path / "bin", "new"))
    old.terminate()
    assert old.wait(20) == 0
    assert types(tmp_path) == ours
    new.terminate()
    assert new.wait(20) == 0
    assert types(tmp_path) == ["calico", "portmap"]
    assert sorted(p.name for p in (tmp_path / "bin").iterdir()) == [NAME]


def test_what_is_left_on_a_node_takes_pods_down_and_starts_none(tmp_path: Path) -> None:
    (tmp_path / ".podlink").mkdir()
    claim(tmp_path, "me")
    take_away(tmp_path)
    stub = [str(tmp_path / NAME)]
    down = subprocess.run(stub, env={"CNI_COMMAND": "DEL"}, capture_output=True)
    assert (down.returncode, down.stdout) == (0, b"")
    up = subprocess.run(stub, env={"CNI_COMMAND": "ADD"}, capture_output=True)
    assert up.returncode == 1 and json.loads(up.stdout)["code"] == 999


# --- for real -----------------------------------------------------------------------------------


@pytest.fixture
def netns_pod() -> Iterator[Pod]:
    made = Pod(f"cni{os.getpid()}")
    made.up()
    yield made
    made.down()


def run(program: list[str], command: str, whole: dict[str, Any], netns: str, **env: str) -> Any:
    return subprocess.run(
        program, input=json.dumps(whole), capture_output=True, text=True, timeout=PATIENCE_S,
        env={
            "CNI_COMMAND": command, "CNI_NETNS": netns, "CNI_IFNAME": "eth0",
            "CNI_CONTAINERID": "c1", "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0", **env,
        },
    )  # fmt: skip


class TestForReal:
    pytestmark = needs_root
    module = (sys.executable, "-m", "cni")
    env: ClassVar[dict[str, str]] = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def test_add_captures_both_families_check_sees_it_and_del_never_fails(
        self, netns_pod: Pod
    ) -> None:
        netns = f"/run/netns/{netns_pod.name}"
        absent = run([*self.module], "CHECK", conf(), netns, **self.env)
        assert absent.returncode == 1 and json.loads(absent.stdout)["code"] == 999
        # Before: what the pod's own proof says where no rule is.
        proof = (sys.executable, "-m", "sidecar.capture.validate")
        failed = netns_pod.run(*proof)
        assert (
            failed.returncode == 1 and "this pod is not captured" in failed.stdout + failed.stderr
        )
        added = run([*self.module], "ADD", conf('{"skip-outbound-ports": "25"}'), netns, **self.env)
        assert (added.returncode, json.loads(added.stdout)) == (0, PREVIOUS), added.stderr
        assert netns_pod.lands("198.51.100.9", 80) == "captured 198.51.100.9 80"
        assert netns_pod.lands("fd99::9", 80) == "captured fd99::9 80"
        assert not netns_pod.lands("198.51.100.9", 25).startswith("captured")
        assert netns_pod.run(*proof).returncode == 0
        assert run([*self.module], "CHECK", conf(), netns, **self.env).returncode == 0
        assert run([*self.module], "ADD", conf(), netns, **self.env).returncode == 0  # again
        assert netns_pod.tables().count("table inet podlink") == 1
        for where in (netns, "/run/netns/gone", ""):
            assert run([*self.module], "DEL", conf(), where, **self.env).returncode == 0
        node = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True)
        assert "inet podlink" not in node.stdout  # nothing on the node itself

    def test_the_app_sees_its_peers_addresses_unless_the_pod_asks_otherwise(
        self, netns_pod: Pod
    ) -> None:
        netns = f"/run/netns/{netns_pod.name}"
        assert run([*self.module], "ADD", conf(), netns, **self.env).returncode == 0
        assert [proven(netns_pod, version) for version in (4, 6)] == ["", ""]
        own = conf('{"source-address": "pod"}')
        assert run([*self.module], "ADD", own, netns, **self.env).returncode == 0
        assert "cannot bind" in proven(netns_pod, 4)
        assert netns_pod.lands("198.51.100.9", 80) == "captured 198.51.100.9 80"

    @pytest.mark.attack_row(36)
    def test_the_proof_needs_no_privilege(self, netns_pod: Pod) -> None:
        netns = f"/run/netns/{netns_pod.name}"
        run([*self.module], "ADD", conf(), netns, **self.env)
        drop = ("setpriv", "--reuid", "24101", "--regid", "24101", "--clear-groups",
                "--bounding-set", "-all", "--no-new-privs")  # fmt: skip
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        done = netns_pod.run(*drop, python, "-m", "sidecar.capture.validate")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_what_is_copied_onto_a_node_runs_without_anything_of_the_image(
        self, netns_pod: Pod, tmp_path: Path
    ) -> None:
        (tmp_path / "bin").mkdir()
        put_plugin(tmp_path / "bin")
        shim = tmp_path / "bin" / "podlink"
        said = run([str(shim)], "VERSION", {"cniVersion": "1.0.0"}, "", PATH="/usr/bin:/bin")
        assert said.returncode == 0, said.stderr
        assert "1.0.0" in json.loads(said.stdout)["supportedVersions"]
        netns = f"/run/netns/{netns_pod.name}"
        # No nft by PATH: it must be the one that was copied.
        done = run([str(shim)], "ADD", conf(), netns, PATH="/usr/bin:/bin")
        assert done.returncode == 0, done.stdout + done.stderr
        assert netns_pod.lands("198.51.100.9", 80) == "captured 198.51.100.9 80"
        again = run([str(shim)], "CHECK", conf(), netns, PATH="/usr/bin:/bin")
        assert again.returncode == 0, again.stdout + again.stderr
