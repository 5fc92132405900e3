"""`podlink authz <pod>`: who may reach a pod, by which rule, and what its sidecar has in force."""

import asyncio
from collections.abc import Iterator
from typing import Any

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.mesh_view import MeshView, ask_sidecar, read_in_force
from cli.table import print_rows
from cli.terminal import printable, printable_json
from policy.rules import ALLOW_ALL, ALLOW_MESHED, Policy, PolicySet, Rule
from registry.facts import PodFacts
from registry.policies import Standing

Row = dict[str, str]
_UNKNOWN = "unknown"


@click.command()
@click.argument("pod")
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table")
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def authz(pod: str, output: str, kubeconfig: str | None, context: str | None) -> None:
    """Say who may open links to POD (namespace/name), and why."""
    try:
        found = asyncio.run(_find(pod, kubeconfig, context))
    except ClusterUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json(found))
        return
    for line in found["notes"]:
        click.echo(printable(line))
    if not found["meshed"]:
        return
    print_rows(
        ("VERDICT", "WHO", "PORTS", "BECAUSE OF"),
        [(row["verdict"], row["who"], row["ports"], row["because"]) for row in found["rules"]],
    )


async def _find(path: str, kubeconfig: str | None, context: str | None) -> dict[str, Any]:
    namespace, slash, name = path.partition("/")
    if not slash or not name:
        raise click.UsageError(f"{path!r} is not namespace/name")
    async with await open_kube(kubeconfig, context) as kube:
        view = MeshView()
        await view.load(kube, namespace)
        pod = view.pods.get(path)
        if pod is None:
            raise click.ClickException(f"there is no pod {printable(path)}")
        page, why_not = await ask_sidecar(kube, pod, "/policy")
    standings = view.standings(pod)
    by_api = view.in_force(pod, ALLOW_MESHED)
    notes = []
    if page is None:
        in_force, default_known = by_api, False
    else:
        in_force, default_known = read_in_force(page), True
    if page is None and pod.meshed:
        notes.append(f"told by the API server alone: {why_not}")
        notes.append("the mesh default is not known then; allow-meshed is assumed")
    if set(in_force.policies) != set(by_api.policies):
        notes.append(
            "NOT IN STEP: the sidecar holds other policies than the API server has; what it "
            "enforces is shown. Is the registry up? has it just changed?"
        )
    notes[:0] = [*summary(pod, in_force), *troubles(standings)]
    return {
        "pod": path,
        "meshed": pod.meshed,
        "identity": f"{pod.namespace}/{pod.service_account}",
        "mesh_default": in_force.mesh_default if default_known else _UNKNOWN,
        "plaintext": in_force.allow_plaintext or not pod.meshed,
        "in_step": page is None or set(in_force.policies) == set(by_api.policies),
        "notes": notes,
        "policies": [
            {"name": name, "in_force": one.state, "error": str(one.error or "")}
            for name, one in standings.items()
        ],
        "rules": list(rows(in_force)) if pod.meshed else [],
    }


def summary(pod: PodFacts, in_force: PolicySet) -> Iterator[str]:
    """What comes before any rule. Pure."""
    where = f"{pod.namespace}/{pod.name}"
    if not pod.meshed:
        yield f"{where} has no sidecar: nothing of podlink guards it, whatever policies say"
        return
    enforcing = [p.name for p in in_force.policies if not p.audit]
    selected = f"policies {', '.join(enforcing)}" if enforcing else "no enforcing policy"
    yield f"{where} runs as {pod.namespace}/{pod.service_account}; {selected} in force"
    if pod.skip_inbound:
        yield f"ports {', '.join(pod.skip_inbound)} are left out of its capture: unguarded"


def troubles(standings: dict[str, Standing]) -> Iterator[str]:
    for name, one in standings.items():
        if one.error is not None:
            yield f"{name} cannot be read ({one.error}); in force: {one.state}"


def rows(in_force: PolicySet) -> Iterator[Row]:
    """Every way in and every bar, in the order in which they are tried. Pure."""
    for policy in in_force.policies:
        yield from _rules(policy, policy.deny, "denied")
    for policy in in_force.policies:
        yield from _rules(policy, policy.allow, "allowed")
    enforcing = [p.name for p in in_force.policies if not p.audit]
    plain = "any address" if in_force.allow_plaintext else ""
    if not plain and in_force.plaintext_ports:
        plain = f"any address, on ports {in_force.plaintext_ports}"
    if not plain:
        yield _row("denied", "whoever shows no identity (plaintext)", "any", "plaintext: deny")
    elif not enforcing and in_force.mesh_default in (ALLOW_ALL, ALLOW_MESHED):
        yield _row("allowed", f"{plain} (plaintext)", "any", "plaintext: allow")
    if enforcing:
        yield _row("denied", "everybody else", "any", f"no rule of {', '.join(enforcing)}")
        return
    default = in_force.mesh_default
    allowed = default in (ALLOW_ALL, ALLOW_MESHED)
    who = "every identity of the mesh" if allowed else "everybody else"
    yield _row("allowed" if allowed else "denied", who, "any", f"the mesh default {default}")


def _rules(policy: Policy, rules: tuple[Rule, ...], verdict: str) -> Iterator[Row]:
    for rule in rules:
        ports = ", ".join(map(str, sorted(rule.ports))) or "any"
        told = f"would be {verdict}" if policy.audit else verdict
        because = f"{policy.name} {rule.name}" + (" (Audit)" if policy.audit else "")
        for source in rule.sources:
            yield _row(told, str(source), ports, because)
        for network in rule.networks:
            yield _row(told, f"{network} (plaintext)", ports, because)


def _row(verdict: str, who: str, ports: str, because: str) -> Row:
    return {"verdict": verdict, "who": who, "ports": ports, "because": because}
