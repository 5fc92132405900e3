"""Writes the plain manifests anew from the chart, through Helm: `make render`.

`local/control_plane.yaml` is what `podlink local` applies, `cli/manifests/*.yaml` what `podlink
install` prints. A test compares them with the chart, so they cannot drift.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from injector.cel import document as guard_document
from scripts.helm import CHART, ROOT, Helm, Rendered, render

Object = dict[str, Any]
HEAD = """\
# Made from charts/podlink by `make render`; change the chart, not this file.
{}"""
_LOCAL = """\
# The control plane as `podlink local` runs it (values: charts/podlink/ci/local.yaml).
#
# Not here: the Secret podlink-traces-token (made by whoever installs), the Secret podlink-ca and the
# ConfigMap podlink-bundle (both made by the CA), and the caBundle of the webhooks (the injector's).
"""
ONLY = "podlink-only"
"""Stands for the one namespace that is served."""
FILES: Mapping[str, tuple[str, Object]] = {
    "local/control_plane.yaml": (
        _LOCAL, yaml.safe_load((CHART / "ci/local.yaml").read_text()) | {"crds": {"enabled": False}}
    ),
    "cli/manifests/podlink.yaml": (
        "# What `podlink install` prints.\n",
        {"namespace": {"create": True}, "tests": {"enabled": False}},
    ),
    "cli/manifests/podlink-cni.yaml": (
        "# What `podlink install --cni` prints.\n",
        {"namespace": {"create": True}, "tests": {"enabled": False}, "cni": {"enabled": True}},
    ),
    "cli/manifests/podlink-one-namespace.yaml": (
        "# What `podlink install --only-namespace` prints.\n",
        {"namespace": {"create": True}, "tests": {"enabled": False}, "onlyNamespace": ONLY},
    ),
}  # fmt: skip


def plain(made: Rendered) -> list[Object]:
    """The objects as they are without Helm: its marks taken off, no Secret (that is made anew)."""
    return [_bare(one) for one in made.objects if one["kind"] != "Secret"]


def _bare(one: Object) -> Object:
    made: Object = json.loads(json.dumps(one))
    labels = made["metadata"].get("labels") or {}
    labels.pop("helm.sh/chart", None)
    if "app.kubernetes.io/managed-by" in labels:
        labels["app.kubernetes.io/managed-by"] = "podlink"
    annotations = made["metadata"].get("annotations") or {}
    annotations.pop("helm.sh/resource-policy", None)
    if "annotations" in made["metadata"] and not annotations:
        del made["metadata"]["annotations"]
    return made


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, so that a diff can be read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def text(helm_said: list[Object], head: str) -> str:
    dumped = yaml.dump_all(
        helm_said, Dumper=_Dumper, sort_keys=False, width=100, explicit_start=True
    )
    return HEAD.format(head) + dumped


def main() -> None:
    (CHART / "files/guard.yaml").write_text(guard_document())
    helm = Helm()
    for name, (head, values) in FILES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(plain(render(helm, values)), head))
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
