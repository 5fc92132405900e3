"""`podlink demo`."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from kit.clock import monotonic
from kit.settings import Settings

CLUSTER = "demo"
Link = Mapping[str, Any]
_ROWS = 5
_STEPS = 8


@click.command()
@click.option(
    "--stay/--no-stay",
    default=None,
    help="Keep the cluster afterwards. Default: if this is a terminal and CI is not set.",
)
def demo(stay: bool | None) -> None:
    """Run a small shop of three linked pods and a stranger on this machine, and check that the shop
    works, that nothing of it crosses the wire in plaintext, that the stranger is refused, and that
    every link leaves its trace. The host's own network is not touched. Status 0 only if all is so.
    """
    from cli.demo.steps import NotTrue, Shop
    from cli.traces_client import TracesClient, TracesUnavailable
    from local import mesh
    from local.cluster import Cluster
    from local.errors import LocalError

    show = _Screen()
    keep = sys.stdout.isatty() and not Settings().optional("CI") if stay is None else stay
    try:
        with show.step("starting a cluster on this machine") as done:
            cluster = Cluster.up(CLUSTER)
            done(f"a cluster runs in namespaces of its own, as {_who(cluster.single_uid)}")
        with cluster:
            traces = TracesClient(kubeconfig=str(cluster.kubeconfig))
            shop = Shop(cluster, lambda: asyncio.run(traces.links(limit="500")))
            with show.step("starting podlink: CA, registry, injector, trace store") as done:
                mesh.install(cluster)
                done("podlink runs: CA, registry, injector, trace store")
            with show.step("starting the shop") as done:
                done(shop.open())
            with show.step("reading the app's code") as done:
                done(shop.plain_code())
            with show.step("capturing packets") as captured, shop.watched() as verdict:
                with show.step("ordering") as done:
                    done(shop.order())
                with show.step("a stranger calls") as done:
                    done(shop.stranger())
                captured(verdict())
            with show.step("reading the record") as done:
                done(shop.record())
            show.links(shop.seen)
            trace_id = shop.one_trace()
            show.trace(trace_id, asyncio.run(traces.trace(trace_id)))
            if keep:
                show.stay(cluster.kubeconfig)
                with suppress(KeyboardInterrupt):  # that is how one leaves
                    cluster.wait()
    except (NotTrue, LocalError, TracesUnavailable) as e:
        raise click.ClickException(" ".join(str(e).split())) from e


def _who(single_uid: bool) -> str:
    if os.geteuid() == 0:
        return "root; the host's network is untouched"
    one = "one UID for all pods" if single_uid else "several UIDs"
    return f"an ordinary user ({one}); the host's network is untouched"


class _Screen:
    """Says each step when it begins (on a terminal) and what came of it when it ends."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._live = sys.stdout.isatty()
        self._number = 0

    def step(self, doing: str) -> "_Step":
        return _Step(self, doing)

    def begin(self, doing: str) -> None:
        self._number += 1
        if self._live:
            click.echo(f"\r\x1b[2K   … step {self._number} of {_STEPS}: {doing}", nl=False)

    def end(self, text: str) -> None:
        if self._live:
            click.echo("\r\x1b[2K", nl=False)
        mark = click.style("✓", fg="green", bold=True)
        click.echo(f" {mark} {monotonic() - self._began:5.1f} s  {text}")

    def clear(self) -> None:
        if self._live:
            click.echo("\r\x1b[2K", nl=False)

    def links(self, found: Sequence[Link]) -> None:
        from cli.links import print_table

        rows = _representative(found)
        click.echo("\npodlink links (one of each kind)\n")
        print_table(rows, wide=False)

    def trace(self, trace_id: str, spans: Sequence[Link]) -> None:
        from cli.trace import print_tree

        click.echo(f"\npodlink trace {trace_id}\n")
        print_tree(trace_id, spans)

    def stay(self, kubeconfig: object) -> None:
        call = "curl -s" if shutil.which("curl") else "python -m cli.demo.call"
        click.echo(
            f"\nThe shop stays up until Ctrl-C. In another terminal:\n\n"
            f"  export KUBECONFIG={kubeconfig}\n"
            f"  alias podlink={Path(sys.argv[0]).absolute()}\n"
            f"  podlink dashboard                           (the review page in a browser)\n"
            f"  podlink links --since 5m\n"
            f"  podlink local --help                        (each command takes --name {CLUSTER})\n"
            f"  podlink local exec --name {CLUSTER} shop/web -- {call} http://127.0.0.1:8080/order/tea\n"
            f"  podlink local logs --name {CLUSTER} shop/api -c podlink-proxy\n"
            f"  podlink local apply --name {CLUSTER} -f your.yaml\n"
            f"  kubectl get pods -A\n"
        )


class _Step:
    """`with screen.step("doing") as done: ...; done("what came of it")`."""

    def __init__(self, screen: _Screen, doing: str) -> None:
        self._screen, self._doing = screen, doing

    def __enter__(self) -> Callable[[str], None]:
        self._screen.begin(self._doing)
        return self._screen.end

    def __exit__(self, *_: object) -> None:
        self._screen.clear()


def _representative(links: Sequence[Link]) -> list[Link]:
    """One link of each pair of ends and verdict, the newest."""
    found: dict[str, Link] = {}
    for link in links:
        source, destination = link.get("source"), link.get("destination")
        ends = [
            end.get("identity") if isinstance(end, dict) else None for end in (source, destination)
        ]
        found.setdefault(f"{ends} {link.get('verdict')}", link)
    return list(found.values())[:_ROWS]
