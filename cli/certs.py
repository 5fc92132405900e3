"""`podlink certs`: the leaves that live, and who is banned."""

import asyncio
import datetime as dt
import getpass
import hashlib
import socket
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import click

from certs.names import BANS_CONFIG_MAP, LEDGER_PREFIX
from certs.records import BanNote, Book, BookMalformed, Entry, merged, read_book
from certs.trust.bans import KINDS, MAX_BANS, Ban, BanMalformed
from cli.cluster import ClusterUnavailable, explained, open_kube
from cli.table import print_rows
from cli.terminal import printable, printable_json
from kit.clock import utcnow
from kit.contract import SYSTEM_NAMESPACE
from kit.kube import Kube, KubeError

T = TypeVar("T")
_TAKES_READ = "`list` on ConfigMaps of the system namespace"
_TAKES_BAN = f"`get`, `create` and `patch` on ConfigMap {BANS_CONFIG_MAP} of the system namespace"
_LATE = 0.8
"""Share of a leaf's life after which a pod counts as late: it renews at half."""


def _cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--context", help="The kubeconfig's context to use."),
        click.option(
            "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
        ),
        click.option("--system-namespace", default=SYSTEM_NAMESPACE, show_default=True),
        click.option(
            "-o",
            "--output",
            type=click.Choice(("table", "json")),
            default="table",
            show_default=True,
        ),
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@click.option("-n", "--namespace", help="Only pods of this namespace.")
@_cluster
@click.pass_context
def certs(
    ctx: click.Context,
    namespace: str | None,
    output: str,
    system_namespace: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """List the living leaves: pod, serial, age, expiry, issuer."""
    if ctx.invoked_subcommand is not None:
        return
    books = _run(kubeconfig, context, lambda kube: _books(kube, system_namespace))
    now = utcnow()
    leaves = [
        leaf
        for leaf in sorted(merged([b.entries for b in books], now).values(), key=lambda e: e.pod)
        if namespace is None or leaf.pod.startswith(f"{namespace}/")
    ]
    if output == "json":
        click.echo(printable_json({"leaves": [_plain(leaf, now) for leaf in leaves]}))
        return
    if not leaves:
        click.echo(
            "no living leaf is in the ledger; a new one is listed within 20 seconds", err=True
        )
        return
    headers = ("POD", "IDENTITY", "SERIAL", "AGE", "EXPIRES IN", "ISSUER", "BUNDLE", "STATE")
    print_rows(headers, (_row(leaf, now) for leaf in leaves))
    late = [leaf.pod for leaf in leaves if _is_late(leaf, now)]
    if late:
        click.echo(
            f"{len(late)} do not renew: look at their proxies' logs ({', '.join(late[:5])})",
            err=True,
        )


@certs.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("value")
@click.option("--why", default="", help="For whoever reads `podlink certs bans` later.")
@_cluster
def ban(
    kind: Any,
    value: str,
    why: str,
    output: str,
    system_namespace: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Believe an identity (spiffe://...), a pod (namespace/name, or its UID) or a serial no more.

    Every CA refuses it at once, every sidecar that listens refuses it and cuts its open links within
    seconds.
    """

    async def work(kube: Kube) -> BanNote:
        checked = await _checked(kube, kind, value)
        at = utcnow().replace(microsecond=0).isoformat()
        note = BanNote(checked, f"{getpass.getuser()}@{socket.gethostname()}", why[:256], at)
        if len(await _notes(kube, system_namespace)) >= MAX_BANS:
            raise ClusterUnavailable(f"there are {MAX_BANS} bans already: lift some first")
        await _write(kube, system_namespace, {_key(checked): note.to_json()})
        return note

    note = _run(kubeconfig, context, work)
    _say(output, note, "banned")


@certs.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("value")
@_cluster
def unban(
    kind: Any,
    value: str,
    output: str,
    system_namespace: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Lift a ban; the words are those of `podlink certs bans`."""

    async def work(kube: Kube) -> BanNote:
        notes = await _notes(kube, system_namespace)
        for key, note in notes.items():
            if (note.ban.kind, note.ban.value) == (kind, value):
                await _write(kube, system_namespace, {key: None})
                return note
        raise ClusterUnavailable(f"{kind} {value} is not banned; see `podlink certs bans`")

    _say(output, _run(kubeconfig, context, work), "no longer banned")


@certs.command()
@_cluster
def bans(output: str, system_namespace: str, kubeconfig: str | None, context: str | None) -> None:
    """List who is banned, by whom and why."""
    notes = _run(kubeconfig, context, lambda kube: _notes(kube, system_namespace))
    found = sorted(notes.values(), key=lambda note: note.ban)
    if output == "json":
        click.echo(printable_json({"bans": [_plain_note(note) for note in found]}))
    elif not found:
        click.echo("nobody is banned", err=True)
    else:
        rows = ((n.ban.kind, n.ban.value, n.by, n.at, n.why) for n in found)
        print_rows(("KIND", "VALUE", "BY", "SINCE", "WHY"), rows)


# --- what it asks and writes ---------------------------------------------------------------------


def _run(
    kubeconfig: str | None, context: str | None, work: Callable[[Kube], Coroutine[Any, Any, T]]
) -> T:
    async def whole() -> T:
        async with await open_kube(kubeconfig, context) as kube:
            return await work(kube)

    try:
        return asyncio.run(whole())
    except (ClusterUnavailable, BanMalformed) as e:
        raise click.ClickException(printable(e)) from e


async def _books(kube: Kube, namespace: str) -> list[Book]:
    try:
        listed = await kube.get(f"/api/v1/namespaces/{namespace}/configmaps")
    except KubeError as e:
        raise explained(e, "read the CA's ledger", _TAKES_READ) from e
    books = []
    for found in listed.get("items") or ():
        if str(found["metadata"]["name"]).startswith(LEDGER_PREFIX):
            try:
                books.append(read_book(found))
            except BookMalformed as e:
                click.echo(printable(f"{found['metadata']['name']} cannot be read: {e}"), err=True)
    return books


async def _checked(kube: Kube, kind: Any, value: str) -> Ban:
    """Raises BanMalformed or ClusterUnavailable."""
    if kind != "pod" or "/" not in value:
        return Ban(kind, value)
    namespace, _, name = value.partition("/")
    try:
        pod = await kube.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    except KubeError as e:
        if e.status == 404:
            raise ClusterUnavailable(
                f"there is no pod {value}; ban one that is gone by its UID (podlink certs -o json)"
            ) from e
        raise explained(e, f"look up pod {value}", "`get` on pods") from e
    return Ban("pod", str(pod["metadata"]["uid"]))


async def _notes(kube: Kube, namespace: str) -> dict[str, BanNote]:
    try:
        found = await kube.get(f"/api/v1/namespaces/{namespace}/configmaps/{BANS_CONFIG_MAP}")
    except KubeError as e:
        if e.status == 404:
            return {}
        raise explained(e, "read the bans", _TAKES_BAN) from e
    notes = {}
    for key, text in (found.get("data") or {}).items():
        try:
            notes[key] = BanNote.from_json(text)
        except BanMalformed as e:
            click.echo(printable(f"{BANS_CONFIG_MAP}: {key} bans nobody: {e}"), err=True)
    return notes


async def _write(kube: Kube, namespace: str, data: dict[str, str | None]) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    try:
        try:
            await kube.patch(f"{maps}/{BANS_CONFIG_MAP}", {"data": data})
        except KubeError as e:
            if e.status != 404:
                raise
            metadata = {"name": BANS_CONFIG_MAP, "namespace": namespace}
            await kube.create(
                maps,
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
            )
    except KubeError as e:
        raise explained(e, "change the bans", _TAKES_BAN) from e


def _key(ban: Ban) -> str:
    """A ConfigMap's key takes no slash or colon."""
    return f"{ban.kind}-{hashlib.sha256(ban.value.encode()).hexdigest()[:24]}"


# --- what it shows -------------------------------------------------------------------------------


def _say(output: str, note: BanNote, text: str) -> None:
    if output == "json":
        click.echo(printable_json(_plain_note(note)))
    else:
        click.echo(printable(f"{note.ban}: {text}"))


def _plain_note(note: BanNote) -> dict[str, str]:
    return {
        "kind": note.ban.kind,
        "value": note.ban.value,
        "by": note.by,
        "since": note.at,
        "why": note.why,
    }


def _plain(leaf: Entry, now: dt.datetime) -> dict[str, object]:
    found: dict[str, object] = asdict(leaf)
    found["issued_at"], found["not_after"] = leaf.issued_at.isoformat(), leaf.not_after.isoformat()
    found["late"] = _is_late(leaf, now)
    return found


def _is_late(leaf: Entry, now: dt.datetime) -> bool:
    return now > leaf.issued_at + (leaf.not_after - leaf.issued_at) * _LATE


def _row(leaf: Entry, now: dt.datetime) -> tuple[str, ...]:
    return (
        leaf.pod,
        leaf.identity,
        leaf.serial or "unknown",
        _short(now - leaf.issued_at),
        _short(leaf.not_after - now),
        leaf.issuer[:16] or "unknown",
        str(leaf.acked),
        "late" if _is_late(leaf, now) else "ok",
    )


def _short(span: dt.timedelta) -> str:
    seconds = int(span.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
