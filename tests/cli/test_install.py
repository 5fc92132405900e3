"""The install path without a cluster: what is printed is what Helm makes of the same choices."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.checks.control_plane import root_lasts
from cli.inject import inject
from cli.install import install
from cli.installed import Installation
from cli.objects import ChoiceRefused, Choices, build
from cli.upgrade import choose, may_follow
from scripts.render import plain
from tests.charts.conftest import Render, helm, rendered
from tests.injector.pods import annotated, pod

__all__ = ["helm", "rendered"]
Object = dict[str, Any]
_NONE = {"namespace": {"create": True}, "tests": {"enabled": False}}


@pytest.mark.parametrize(
    ("choices", "values", "namespace"),
    [
        (Choices(), {}, "podlink-system"),
        (Choices(namespace="mesh", trust_domain="prod.example"), {"trustDomain": "prod.example"},
         "mesh"),
        (Choices(image="r.example/podlink:2"), {"image": {"registry": "r.example",
         "repository": "podlink", "tag": "2"}}, "podlink-system"),
        (Choices(cni=True, namespace="mesh"), {"cni": {"enabled": True}}, "mesh"),
        (Choices(only_namespace="shop"), {"onlyNamespace": "shop"}, "podlink-system"),
        (Choices(guard=False), {"guard": {"enabled": False}}, "podlink-system"),
        (Choices(also_images=("podlink/podlink:0.0.9",)),
         {"guard": {"alsoAllowImages": ["podlink/podlink:0.0.9"]}}, "podlink-system"),
    ],
)  # fmt: skip
def test_the_choices_come_out_as_helm_makes_them(
    rendered: Render, choices: Choices, values: Object, namespace: str
) -> None:
    wanted = plain(rendered({**_NONE, **values}, namespace=namespace))
    assert build(choices) == wanted


def test_choices_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ChoiceRefused, match="Helm chart"):
        build(Choices(cni=True, only_namespace="shop"))
    with pytest.raises(ChoiceRefused, match="another namespace"):
        build(Choices(only_namespace="podlink-system"))
    bad = CliRunner().invoke(install, ["--trust-domain", "No Domain"])
    assert bad.exit_code == 2 and "--trust-domain" in bad.output


def test_install_prints_a_token_of_its_own_each_time() -> None:
    printed = [CliRunner().invoke(install, []).output for _ in range(2)]
    tokens = {
        one["data"]["token"]
        for text in printed
        for one in yaml.safe_load_all(text)
        if one["kind"] == "Secret"
    }
    assert len(tokens) == 2


def run_inject(text: str) -> tuple[int, str]:
    done = CliRunner().invoke(inject, ["--offline", "-f", "-"], input=text)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"]
)
def test_inject_reaches_the_pods_of_every_workload(kind: str) -> None:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod()["spec"]}
    made: Object = {"kind": kind, "metadata": {"name": "web"}}
    if kind == "Pod":
        made |= template
    elif kind == "CronJob":
        made["spec"] = {"jobTemplate": {"spec": {"template": template}}}
    else:
        made["spec"] = {"template": template, "replicas": 2}
    service = {"kind": "Service", "metadata": {"name": "web"}, "spec": {}}
    status, output = run_inject(yaml.safe_dump_all([service, {"kind": "List", "items": [made]}]))
    assert status == 0
    same, many = list(yaml.safe_load_all(output))
    assert same == service
    assert output.count("name: podlink-proxy") == 1
    assert "ownerReferences" not in output
    again, twice = run_inject(output)
    assert (again, list(yaml.safe_load_all(twice))) == (0, [service, many])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no YAML"),
        ("just text", "no Kubernetes object"),
        ("kind: Deployment\nspec: {}", "spec.template is missing"),
        (yaml.safe_dump({**annotated(mode="sideways"), "kind": "Pod"}), "Pod web: pod annotation"),
        (yaml.safe_dump({**pod(hostPID=True), "kind": "Pod"}), "host_pid"),
        ("kind: Pod\nspec: 7", "spec: is missing (pod_malformed)"),
    ],
)
def test_inject_names_what_is_wrong_in_one_line(text: str, said: str) -> None:
    status, output = run_inject(text)
    assert status == 1 and said in output
    assert len(output.strip().splitlines()) == 1


def test_a_file_that_is_missing_is_named() -> None:
    done = CliRunner().invoke(inject, ["--offline", "-f", "/nowhere/x.yaml"])
    assert done.exit_code == 1 and "/nowhere/x.yaml" in done.output


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        ("0.1.0", "0.1.9", True), ("0.1.0", "0.2.0", True), ("0.2.0", "0.1.0", True),
        ("0.1.0", "0.3.0", False), ("1.0.0", "2.0.0", False), ("dev", "0.2.0", True),
    ],
)  # fmt: skip
def test_versions_may_be_one_minor_apart(old: str, new: str, may: bool) -> None:
    assert may_follow(old, new) is may


def installation(version: str = "0.1.0", manager: str = "podlink", **env: str) -> Installation:
    labels = {"app.kubernetes.io/version": version, "app.kubernetes.io/managed-by": manager}
    entries = [{"name": k, "value": v} for k, v in env.items()]
    spec = {"template": {"spec": {"containers": [{"env": entries}]}}}
    return Installation(
        "mesh", {"podlink-injector": {"metadata": {"labels": labels}, "spec": spec}}
    )


def test_an_upgrade_keeps_what_was_chosen_and_lets_the_last_image_in() -> None:
    found = installation(
        PODLINK_IMAGE="old:1", PODLINK_TRUST_DOMAIN="prod.example", PODLINK_CAPTURE_BY="cni"
    )
    assert choose(found, "new:2", guard=True) == Choices(
        namespace="mesh", image="new:2", trust_domain="prod.example", cni=True, guard=True,
        also_images=("old:1",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "said"),
    [(installation("9.0.0"), "more than one minor"), (installation(manager="Helm"), "Helm's")],
)
def test_an_upgrade_that_cannot_be_is_refused(found: Installation, said: str) -> None:
    with pytest.raises(Exception, match=said):
        choose(found, "new:2", guard=True)


@pytest.mark.parametrize(("days", "state"), [(400, "ok"), (59, "warn"), (6, "fail"), (-1, "fail")])
def test_roots_are_warned_of_at_60_and_7_days(days: int, state: str) -> None:
    class FakeRoot:
        not_valid_after_utc = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(
            days=days, hours=1
        )

    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert root_lasts([FakeRoot()], now).state == state  # type: ignore[list-item]


def test_every_check_is_on_its_page() -> None:
    import re

    sources = "".join(path.read_text() for path in Path("cli/checks").glob("*.py"))
    used = set(re.findall(r'(?:ok|warn|fail|unreadable|Outcome)\(\s*"([a-z-]+)"', sources))
    used |= {f"podlink-{n}-ready" for n in ("ca", "registry", "injector", "traces")} | {"installed"}
    page = Path("docs/checks.md").read_text()
    assert used == set(re.findall(r"^\| `([a-z-]+)`", page, re.M))
