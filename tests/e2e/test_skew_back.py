"""Upgrade skew the other way: sidecars of this version under the CA and the registry of the last one, as
while an upgrade's pods come up one after the other, or once a control plane was rolled back.

A cluster of its own: its CA and registry are the last version's, run as they were.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from local import mesh as podlink
from local.cluster import Cluster
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import MESH, PLAIN, Object, namespace, pod, serving
from tests.e2e.test_skew import ROOT, tree

__all__ = ["tree"]
OLD = ("podlink-ca", "podlink-registry")


def skewed(objects: str, tree: Path) -> str:
    """This version's objects; CA and registry run the last version's code."""
    made: list[Object] = list(yaml.safe_load_all(objects))
    for one in made:
        if one["kind"] == "Deployment" and one["metadata"]["name"] in OLD:
            (container,) = one["spec"]["template"]["spec"]["containers"]
            container["env"].append({"name": "PYTHONPATH", "value": str(tree)})
    return yaml.safe_dump_all(made)


@pytest.fixture(scope="module")
def back(tree: Path) -> Iterator[Mesh]:
    with pytest.MonkeyPatch.context() as patch, Cluster.up(name=f"skew-{os.getpid()}") as cluster:
        if cluster.single_uid:
            pytest.skip("one UID only: the last version's objects are for more")
        made = podlink._control_plane(cluster.single_uid)
        patch.setattr(podlink, "_control_plane", lambda _: skewed(made, tree))
        podlink.install(cluster, timeout_s=90.0)
        running = Mesh(cluster)
        running.apply(
            namespace(MESH, injected=True), namespace(PLAIN, injected=False),
            pod("client"), pod("server", serving("echo", 7001)), pod("stranger", where=PLAIN),
        )  # fmt: skip
        yield running


@pytest.mark.fault_row("version-skew")
def test_new_sidecars_link_by_mutual_tls_under_the_last_control_plane(back: Mesh) -> None:
    for program in ("ca", "registry"):
        environ = back.node("cat", f"/proc/{back.system_pid(program)}/environ").split("\0")
        assert any(one.startswith(f"PYTHONPATH={ROOT / '.skew'}") for one in environ)
    since, ip = now(), back.ip(f"{MESH}/server")
    until(lambda: back.attempt(f"{MESH}/client", ip, 7001, "hello")["got"] == "hello", "an answer")
    assert back.attempt(f"{PLAIN}/stranger", ip, 7001, "let me in")["got"] == ""
    pid = back.proxy_pid(f"{MESH}/client")
    assert ".skew" not in back.node("cat", f"/proc/{pid}/environ"), "the sidecar is this version's"
    link = back.link(since, destination_address=ip, verdict="allowed")
    assert link["security"] == "mtls"
