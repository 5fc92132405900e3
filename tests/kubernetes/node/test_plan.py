"""What can be judged of the node without running one; this much runs everywhere."""

from pathlib import Path

import pytest
import yaml

from tests.kubernetes.node.cluster import prepare, why_not
from tests.kubernetes.node.plan import PROGRAMS, NodePlan, network


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "is not set" in why_not({})
    (tmp_path / "etcd").touch()
    said = why_not({"KUBEBUILDER_ASSETS": str(tmp_path)})
    assert "kubelet" in said and "there is no kube-apiserver" in said and "etcd," not in said


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_every_file_a_program_is_told_of_is_written_and_no_key_can_be_read_by_others(
    tmp_path: Path, mode: str
) -> None:
    plan = NodePlan(tmp_path / "node", Path("/assets"), "some-cgroup", proxy_mode=mode)
    prepare(plan)
    commands = plan.commands()
    assert {*commands, "kubectl"} == {*PROGRAMS, "containerd"}
    told = [word.rpartition("=")[2] for words in commands.values() for word in words[1:]]
    files = [Path(one) for one in told if one.startswith(str(plan.folder)) and Path(one).suffix]
    assert len(files) > 10
    assert [one for one in files if not one.is_file()] == []
    keys = [p for p in (plan.folder / "pki").iterdir() if p.suffix not in (".crt",)]
    assert {oct(one.stat().st_mode & 0o777) for one in keys} == {"0o600"}
    assert yaml.safe_load((plan.folder / "kube-proxy.yaml").read_text())["mode"] == mode


def test_the_chain_before_podlink_is_the_clusters_own() -> None:
    assert [one["type"] for one in network(Path("/d"))["plugins"]] == ["bridge", "portmap"]
