"""Writes the golden pods anew: `python -m tests.injector.write_golden`, then read the diff."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from injector.annotations import AnnotationRefused
from injector.guard import PodRefused
from tests.injector.pods import MESH, annotated, changed, injected, namespace, pod

APP = {"name": "web", "image": "web:1"}
CASES: dict[str, dict[str, Any]] = {
    "plain_pod": {"pod": pod()},
    "own_init_containers_and_volumes": {
        "pod": pod(initContainers=[{"name": "migrate", "image": "m:1"}], volumes=[{"name": "data"}])
    },
    "every_annotation": {
        "pod": annotated(
            skip_inbound_ports="9100", skip_outbound_ports="25,9000-9010",
            skip_subnets="192.0.2.0/24", upstreams="5432=db.prod:5432", plaintext="allow",
            external="deny", http_ports="8080", proxy_cpu_request="100m", proxy_cpu_limit="1",
            proxy_memory_request="64Mi", proxy_memory_limit="128Mi", proxy_log_level="debug",
            workers="2", shutdown_grace_period="30s",
        )
    },
    "localhost_mode_from_the_namespace": {
        "pod": pod(), "namespace": namespace(mode="localhost", upstreams="6379=redis.prod:6379")
    },
    "exempt_by_mark": {"pod": pod(), "mesh": {"exempt_by": "mark"}},
    "already_injected": {"pod": injected(pod())},
    "host_network": {"pod": pod(hostNetwork=True)},
    "not_enrolled": {"pod": pod(), "namespace": namespace(None)},
    "refused_image_annotation": {"pod": annotated(proxy_image="evil:1")},
    "refused_skip_everything": {"pod": annotated(skip_inbound_ports="1-65535")},
    "refused_foreign_proxy": {
        "pod": pod(initContainers=[{"name": "podlink-proxy", "image": "evil:1"}])
    },
    "refused_proxy_uid": {
        "pod": pod(containers=[{**APP, "securityContext": {"runAsUser": 24100}}])
    },
}  # fmt: skip


def main() -> None:
    folder = Path(__file__).parent / "golden"
    folder.mkdir(exist_ok=True)
    for name, case in CASES.items():
        whole = {"namespace": namespace(), **case}
        mesh = replace(MESH, **whole.get("mesh", {}))
        try:
            mutation = changed(whole["pod"], whole["namespace"], mesh)
        except (PodRefused, AnnotationRefused) as refused:
            whole["refused"] = str(refused)
        else:
            whole |= {"warnings": list(mutation.warnings), "patch": mutation.patch}
        (folder / f"{name}.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
