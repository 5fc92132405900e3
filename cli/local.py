"""`podlink local`: a cluster on this machine."""

import functools
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import click
import yaml

from cli.live import Live
from local import mesh
from local.cluster import Cluster
from local.control import ExecFailed
from local.errors import LocalError, TimedOut
from local.manifests import read
from local.objects import Object
from local.readiness import AWAITED, called
from local.state import DEFAULT_NAME

P = ParamSpec("P")
T = TypeVar("T")

_KINDS = {
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "namespaces": ("v1", "Namespace"),
    "nodes": ("v1", "Node"),
    "configmaps": ("v1", "ConfigMap"),
    "secrets": ("v1", "Secret"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "events": ("v1", "Event"),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "deployments": ("apps/v1", "Deployment"),
    "replicasets": ("apps/v1", "ReplicaSet"),
    "statefulsets": ("apps/v1", "StatefulSet"),
    "linkpolicies": ("podlink.dev/v1alpha1", "LinkPolicy"),
    "mutatingwebhookconfigurations": (
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
    ),
}
_SHORT = {
    "po": "pods",
    "pod": "pods",
    "svc": "services",
    "service": "services",
    "ns": "namespaces",
    "namespace": "namespaces",
    "no": "nodes",
    "cm": "configmaps",
    "sa": "serviceaccounts",
    "ev": "events",
    "deploy": "deployments",
    "deployment": "deployments",
    "rs": "replicasets",
    "sts": "statefulsets",
}


def one_line(command: Callable[P, T]) -> Callable[P, T]:
    """Show a LocalError as one line, not as a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except LocalError as e:
            raise click.ClickException(" ".join(str(e).split())) from e

    return wrapped


_name = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which cluster.")
_files = click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A manifest, a directory of them, or - for standard input.",
)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for what is applied to be ready.",
)


@click.group()
def local() -> None:
    """Run a cluster on this machine: pods as network namespaces, nothing installed."""


@local.command()
@_name
@_files
@click.option("--bare", is_flag=True, help="Without podlink: a plain cluster.")
@click.option("--foreground", is_flag=True, help="Stay, and end the cluster with Ctrl-C.")
@click.option(
    "--publish",
    multiple=True,
    metavar="PORT:NAMESPACE/SERVICE:PORT",
    help="Let a port of this machine's 127.0.0.1 lead to a Service.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Until the pods and Services of the manifests are ready.",
)
@_timeout
@one_line
def up(
    name: str,
    files: tuple[Path, ...],
    bare: bool,
    foreground: bool,
    publish: tuple[str, ...],
    wait: bool,
    timeout: float,
) -> None:
    """Start a cluster, install podlink, apply manifests and wait until they are ready. Ctrl-C on the
    way leaves nothing; what is not ready in time leaves the cluster up to be looked at, and status 1.
    """
    ports = dict(_published(text) for text in publish)
    wanted = [m for source in _sources(files) for m in read(source)]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with ExitStack() as ends:
        live = ends.enter_context(Live())
        live.say("starting the cluster")
        cluster = Cluster.up(name, publish=ports)
        ends.callback(_end, cluster)
        if not bare:
            live.say("starting podlink: CA, registry, injector, trace store")
            mesh.install(cluster)
        made = cluster.apply_read(wanted)
        live.clear()
        _say_up(cluster, made, bare=bare)
        late = _wait_applied(cluster, made, timeout, live) if wait else None
        _say_next(cluster, bare=bare)
        if late is not None:
            _say_late(cluster, late)
        if foreground:
            cluster.wait()
        else:
            cluster.release()
            ends.pop_all()
        if late is not None:
            sys.exit(1)


def _say_up(cluster: Cluster, made: list[Object], *, bare: bool) -> None:
    one = " (one user id only: containers share it)" if cluster.single_uid else ""
    what = "" if bare else " with podlink"
    click.echo(f"cluster {cluster.name} is up{what}{one}")
    for obj in made:
        click.echo(f"{called(obj)} applied")


def _say_next(cluster: Cluster, *, bare: bool) -> None:
    click.echo(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    if not bare:
        click.echo("then: podlink links, podlink trace, kubectl get pods -A")


def _say_late(cluster: Cluster, late: TimedOut) -> None:
    name = "" if cluster.name == DEFAULT_NAME else f" --name {cluster.name}"
    click.echo(
        f"Error: {' '.join(str(late).split())} (the cluster stays up: podlink local logs{name} "
        f"NAMESPACE/POD; podlink local down{name})",
        err=True,
    )


def _wait_applied(
    cluster: Cluster, made: list[Object], timeout_s: float, live: Live
) -> TimedOut | None:
    """Wait and say what becomes ready; returns what came too late."""
    total, ready = sum(obj["kind"] in AWAITED for obj in made), 0

    def tell(names: list[str], lack: str) -> None:
        nonlocal ready
        for name in names:
            ready += 1
            live.clear()
            click.echo(f"{name} ready ({ready} of {total})")
        if lack:
            live.say(f"{ready} of {total} ready; {lack}")

    try:
        cluster.wait_applied(made, timeout_s=timeout_s, tell=tell)
    except TimedOut as e:
        return e
    finally:
        live.clear()
    return None


def _end(cluster: Cluster) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cluster.down()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@local.command()
@_name
@one_line
def down(name: str) -> None:
    """End a cluster; nothing of it is left."""
    Cluster.find(name).down()
    click.echo(f"cluster {name} is down")


@local.command()
@_name
@one_line
def kubeconfig(name: str) -> None:
    """Print the path of a cluster's kubeconfig."""
    click.echo(Cluster.find(name).kubeconfig)


@local.command()
@_name
@_files
@click.option("--wait", is_flag=True, help="Until their pods and Services are ready.")
@_timeout
@one_line
def apply(name: str, files: tuple[Path, ...], wait: bool, timeout: float) -> None:
    """Create or change objects. Like kubectl it does not wait for them unless --wait is given."""
    cluster = Cluster.find(name)
    made = []
    for source in _sources(files, required=True):
        for obj in cluster.apply(source):
            click.echo(f"{called(obj)} applied")
            made.append(obj)
    if wait:
        with Live() as live:
            late = _wait_applied(cluster, made, timeout, live)
        if late is not None:
            raise late


@local.command()
@_name
@_files
@one_line
def delete(name: str, files: tuple[Path, ...]) -> None:
    """Delete the objects of manifests."""
    cluster = Cluster.find(name)
    for source in reversed(_sources(files, required=True)):
        for gone in cluster.delete(source):
            click.echo(f"{called(gone)} deleted")


@local.command()
@_name
@click.argument("kind")
@click.argument("object_name", required=False)
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table"
)
@one_line
def get(
    name: str,
    kind: str,
    object_name: str | None,
    namespace: str,
    all_namespaces: bool,
    output: str,
) -> None:
    """Show objects: pods, services, deployments, endpointslices, ..."""
    plural = _SHORT.get(kind.lower(), kind.lower())
    if plural not in _KINDS:
        raise click.ClickException(f"unknown kind {kind!r}: one of {', '.join(sorted(_KINDS))}")
    client = Cluster.find(name).client
    api_version, kind_name = _KINDS[plural]
    scope = "" if all_namespaces else namespace
    path = client.path(api_version, kind_name, scope, object_name or "")
    path = path.replace("/namespaces//", "/")
    if output in ("json", "yaml"):
        found = client.call("GET", path)
        text = json.dumps(found, indent=2) if output == "json" else yaml.safe_dump(found)
        click.echo(text.rstrip())
        return
    _print_table(client.table(path), wide=output == "wide", namespaces=all_namespaces)


@local.command(context_settings={"ignore_unknown_options": True})
@_name
@click.option("-c", "--container", default="", help="The first one of the pod by default.")
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@one_line
def exec(name: str, container: str, pod: str, command: tuple[str, ...]) -> None:
    """Run a command in NAMESPACE/POD: podlink local exec shop/web -- curl http://api"""
    with _not_found_is_127():
        sys.exit(Cluster.find(name).exec_attached(pod, list(command), container))


@local.command("node-exec", context_settings={"ignore_unknown_options": True})
@_name
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@one_line
def node_exec(name: str, command: tuple[str, ...]) -> None:
    """Run a command on the node: podlink local node-exec -- nft list ruleset"""
    with _not_found_is_127():
        sys.exit(Cluster.find(name).node_exec_attached(list(command)))


@local.command()
@_name
@click.option("-c", "--container", default="")
@click.option("-f", "--follow", is_flag=True)
@click.option("--previous", is_flag=True, help="Of the run before the last restart.")
@click.argument("pod")
@one_line
def logs(name: str, container: str, follow: bool, previous: bool, pod: str) -> None:
    """Print what a container of NAMESPACE/POD has written."""
    cluster = Cluster.find(name)
    if not follow:
        click.echo(cluster.logs(pod, container, previous=previous), nl=False)
        return
    for chunk in cluster.follow_logs(pod, container):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


@contextmanager
def _not_found_is_127() -> Iterator[None]:
    """A command that cannot be run ends with the status that a shell gives it."""
    try:
        yield
    except ExecFailed as e:
        click.echo(f"Error: {' '.join(str(e).split())}", err=True)
        sys.exit(127)


def _sources(files: tuple[Path, ...], *, required: bool = False) -> list[str | Path]:
    if required and not files:
        raise click.UsageError("say which manifest: -f FILE")
    return [sys.stdin.read() + "\n" if str(f) == "-" else f for f in files]


def _published(text: str) -> tuple[int, str]:
    port, _, target = text.partition(":")
    namespace, slash, rest = target.partition("/")
    service, colon, _ = rest.partition(":")
    valid = port.isdigit() and 0 < int(port) < 65536 and slash and colon and namespace and service
    if not valid:
        raise click.UsageError(f"--publish must be PORT:NAMESPACE/SERVICE:PORT, not {text!r}")
    return int(port), target


def _print_table(table: dict[str, object], *, wide: bool, namespaces: bool) -> None:
    columns = table["columnDefinitions"]
    rows = table["rows"]
    assert isinstance(columns, list)
    assert isinstance(rows, list)
    shown = [i for i, column in enumerate(columns) if wide or column["priority"] == 0]
    head = [columns[i]["name"].upper() for i in shown]
    lines = [[str(row["cells"][i]) for i in shown] for row in rows]
    if namespaces:
        head.insert(0, "NAMESPACE")
        for line, row in zip(lines, rows, strict=True):
            line.insert(0, row["object"]["metadata"].get("namespace", ""))
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("   ".join(padded).rstrip())
