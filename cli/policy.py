"""`podlink policy check|replay|suggest`: LinkPolicies before they are applied.

`replay` and `suggest` go by the links on record, joined with the labels that pods have today.
"""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.documents import read_documents
from cli.links import Since
from cli.mesh_view import MeshView
from cli.policy_replay import Outcome, only_told_by_source, read_traffic, replay
from cli.policy_suggest import suggest
from cli.table import print_rows
from cli.terminal import printable, printable_json
from cli.traces_client import TracesClient, TracesUnavailable
from kit.clock import unix_ns
from policy.linkpolicy import LinkPolicy, PolicyInvalid, parse
from policy.replay import Seen
from registry.facts import PodFacts

_MAX_BYTES = 1 << 20
_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.group()
def policy() -> None:
    """LinkPolicies, before they are applied."""


def _kube_options(command: Any) -> Any:
    command = click.option("--context", help="The kubeconfig's context to use.")(command)
    said = "As kubectl: else $KUBECONFIG, ~/.kube/config."
    return click.option("--kubeconfig", type=click.Path(), help=said)(command)


@policy.command()
@click.option("-f", "--file", type=_FILE, required=True, help="YAML or JSON; - for stdin.")
@click.option("-n", "--namespace", default="default", help="Where an object names none.")
def check(file: Path, namespace: str) -> None:
    """Say whether the policies in a file would be accepted, and what they amount to."""
    for one in read_file(file, namespace):
        mode = "Audit" if one.policy.audit else "Enforce"
        click.echo(
            f"{one.policy.name}: ok, {mode}, {len(one.policy.allow)} allow, {len(one.policy.deny)} deny"
        )
        for line in advice(one):
            click.echo(f"  note: {line}")


def advice(one: LinkPolicy) -> list[str]:
    """What is lawful and perhaps not meant. Pure."""
    found = []
    if not one.policy.allow and not one.policy.audit:
        found.append("it has no allow rule, so the pods it selects let nobody in")
    if not one.selector.requirements:
        found.append(f"it selects every pod of namespace {one.namespace}")
    for rule in (*one.policy.allow, *one.policy.deny):
        if rule.networks:
            found.append(f"{rule.name}: fromCIDRs is for plaintext; it never matches a mesh peer")
        if any(network.prefixlen == 0 for network in rule.networks):
            found.append(f"{rule.name}: every address without identity")
    return found


@policy.command("replay")
@click.option("-f", "--file", type=_FILE, required=True, help="YAML or JSON; - for stdin.")
@click.option("-n", "--namespace", default="default", help="Where an object names none.")
@click.option("--since", type=Since(), default="7d", show_default=True, help="How far back.")
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table")
@_kube_options
def replay_command(
    file: Path,
    namespace: str,
    since: int,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Say which links on record these policies would have cut, and which of their rules nothing
    used. A policy of the file takes the place of one of the same name. Ends with status 1 if any
    link would have been cut."""
    candidates = read_file(file, namespace)
    spaces = sorted({one.namespace for one in candidates})
    traffic, view = asyncio.run(_record(spaces, since, kubeconfig, context))
    names = {one.policy.name for one in candidates}
    others = [
        standing.policy
        for place, name in view.policies
        if f"{place}/{name}" not in names
        and (standing := view.model.policies.standing(place, name)) is not None
    ]
    result = replay(candidates, others, traffic, _labels(view.pods.values()))
    if output == "json":
        click.echo(printable_json(result.as_json()))
    else:
        _print(result.outcomes)
        for rule in result.unused:
            click.echo(f"nothing on record used {rule}")
        cut, kept = result.count("cut"), result.count("kept")
        click.echo(f"{cut} links would have been cut, {kept} kept, {result.count('opened')} let in")
        for line in result.notes:
            click.echo(f"note: {printable(line)}")
    if result.count("cut"):
        raise click.exceptions.Exit(1)


@policy.command("suggest")
@click.option("-n", "--namespace", required=True, help="Whose pods to guard.")
@click.option("--since", type=Since(), default="7d", show_default=True, help="How far back.")
@click.option("--enforce", is_flag=True, help="Suggest mode Enforce instead of Audit.")
@_kube_options
def suggest_command(
    namespace: str, since: int, enforce: bool, kubeconfig: str | None, context: str | None
) -> None:
    """Print the least policies that allow what was seen, ready for kubectl apply. They only audit,
    until you have seen that nothing is missing; --enforce to skip that."""
    traffic, view = asyncio.run(_record([namespace], since, kubeconfig, context))
    pods = [pod for pod in view.pods.values() if pod.namespace == namespace]
    click.echo(suggest(namespace, traffic, pods, enforce=enforce), nl=False)


def read_file(path: Path, namespace: str) -> list[LinkPolicy]:
    """Every LinkPolicy of a file. Raises ClickException naming the document and the field."""
    found = []
    for number, document in enumerate(read_documents(path, _MAX_BYTES), 1):
        items = document.get("items") if isinstance(document, dict) else None
        for one in items if isinstance(items, list) else [document]:
            try:
                found.append(parse(one, namespace))
            except PolicyInvalid as e:
                raise click.ClickException(printable(f"{path}, document {number}: {e}")) from e
    if not found:
        raise click.ClickException(f"{printable(path)} holds no LinkPolicy")
    return found


async def _record(
    namespaces: Sequence[str], since: int, kubeconfig: str | None, context: str | None
) -> tuple[list[Seen], MeshView]:
    client = TracesClient(kubeconfig=kubeconfig, context=context)
    view, found = MeshView(), list[Seen]()
    try:
        async with await open_kube(kubeconfig, context) as kube:
            await view.load(kube, *namespaces)
        for name in namespaces:
            rows = await client.traffic(since=str(since), destination_namespace=name)
            found += read_traffic(rows)
            if left_out := only_told_by_source(rows):
                click.echo(
                    f"note: {left_out} links to namespace {printable(name)} are told of by their source "
                    "alone, and left out",
                    err=True,
                )
    except (ClusterUnavailable, TracesUnavailable) as e:
        raise click.ClickException(printable(e)) from e
    return found, view


def _labels(pods: Iterable[PodFacts]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Labels of the living pods of each (namespace, service account)."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for pod in pods:
        if not pod.finished:
            found.setdefault((pod.namespace, pod.service_account), []).append(dict(pod.labels))
    return found


def _print(outcomes: Sequence[Outcome]) -> None:
    shown = [one for one in outcomes if one.fate != "kept"]
    if not shown:
        return
    now = unix_ns()
    print_rows(
        ("FATE", "SOURCE", "DESTINATION", "PORT", "LINKS", "LAST", "BECAUSE OF"),
        [
            (
                one.fate,
                one.seen.source,
                f"{one.seen.namespace}/{one.seen.account}",
                one.seen.port,
                one.seen.links,
                _age(now - one.seen.last_ns),
                one.why,
            )
            for one in shown
        ],
    )


def _age(ns: int) -> str:
    seconds = max(0, ns // 1_000_000_000)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
