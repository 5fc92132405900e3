"""`podlink endpoints ns/pod`: what a sidecar believes of the Services it uses, beside the API's view."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from cli.cluster import ClusterUnavailable, explained, open_kube
from cli.exec import ExecFailed, exec_json
from cli.pods import PodName, read_pod
from cli.table import print_rows
from cli.terminal import printable, printable_json
from kit.kube import Kube, KubeError


@dataclass(frozen=True, slots=True)
class Row:
    """One endpoint of one Service, as the two see it."""

    service: str
    address: str
    pod: str
    identity: str
    meshed: bool
    sidecar: str
    """`ready`, `terminating`, `not ready`, `ejected`, or empty: it does not know it."""
    api: str
    """`ready`, `terminating`, `not ready`, or empty: the API does not list it."""
    open_links: int

    @property
    def agree(self) -> bool:
        return self.sidecar.removeprefix("ejected ") == self.api


@click.command()
@click.argument("pod")
@click.option(
    "-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True
)
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def endpoints(pod: str, output: str, kubeconfig: str | None, context: str | None) -> None:
    """Show the endpoints that POD's sidecar knows, and where the API sees it otherwise.

    Status 3 if the two disagree; for a moment after a change they may."""
    name = PodName.parse(pod)
    try:
        rows = asyncio.run(_compare(name, kubeconfig, context))
    except (ClusterUnavailable, ExecFailed) as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json({"endpoints": [{**asdict(r), "agree": r.agree} for r in rows]}))
    elif not rows:
        click.echo(f"the sidecar of {name} has resolved no Service yet", err=True)
    else:
        headers = ("SERVICE", "ENDPOINT", "POD", "IDENTITY", "SIDECAR", "API", "OPEN", "")
        print_rows(
            headers,
            (
                (
                    r.service,
                    r.address,
                    r.pod or "not a pod",
                    r.identity or "unmeshed",
                    r.sidecar or "unknown",
                    r.api or "not listed",
                    r.open_links,
                    "" if r.agree else "DIFFER",
                )
                for r in rows
            ),
        )
    if any(not row.agree for row in rows):
        raise click.exceptions.Exit(3)


async def _compare(pod: PodName, kubeconfig: str | None, context: str | None) -> list[Row]:
    async with await open_kube(kubeconfig, context) as kube:
        await read_pod(kube, pod)
        said = await exec_json(kube, pod.namespace, pod.name, "/endpoints")
        found: list[Row] = []
        for service in said.get("services", ()):
            name, _, namespace = str(service.get("name", "")).partition(".")
            namespace = str(service.get("namespace") or namespace)
            found += compare(service, await _slices(kube, namespace, name))
        return found


async def _slices(kube: Kube, namespace: str, name: str) -> list[dict[str, Any]]:
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    try:
        found = await kube.get(path, labelSelector=f"kubernetes.io/service-name={name}")
    except KubeError as e:
        raise explained(
            e, f"read the endpoints of {name}.{namespace}", "`list` on endpointslices"
        ) from e
    items = found.get("items")
    return items if isinstance(items, list) else []


def compare(service: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Pure: the sidecar's page of one Service beside the API's EndpointSlices of it."""
    listed: dict[str, str] = {}
    pods: dict[str, str] = {}
    for one in slices:
        for endpoint in one.get("endpoints") or ():
            for address in endpoint.get("addresses") or ():
                listed[address] = _condition(endpoint.get("conditions") or {})
                target = endpoint.get("targetRef") or {}
                pods[address] = f"{target.get('namespace', '')}/{target.get('name', '')}"
    name = str(service.get("key") or service.get("name"))
    rows = []
    known: set[str] = set()
    for endpoint in service.get("endpoints") or ():
        ip = str(endpoint.get("ip"))
        known.add(ip)
        ports = list((endpoint.get("ports") or {}).values())
        workload = endpoint.get("workload") or {}
        state = _condition(endpoint)
        if any(port.get("ejected") for port in ports):
            state = f"ejected {state}"
        said_ports = ",".join(str(port.get("port")) for port in ports)
        rows.append(
            Row(
                name,
                f"{ip}:{said_ports}" if said_ports else ip,
                str(workload.get("pod") or ""),
                str(workload.get("identity") or ""),
                bool(workload.get("meshed")),
                state,
                listed.get(ip, ""),
                sum(int(port.get("open_links") or 0) for port in ports),
            )
        )
    family = {":" in ip for ip in known}
    rows += [
        Row(name, ip, pods[ip], "", False, "", state, 0)
        for ip, state in sorted(listed.items())
        if ip not in known and (not family or (":" in ip) in family)
    ]
    return rows


def _condition(conditions: Mapping[str, Any]) -> str:
    if conditions.get("terminating"):
        return "terminating"
    return "ready" if conditions.get("ready") is not False else "not ready"
