"""`podlink report`: the evidence of a time, signed, in one HTML file and one JSON file; and
`podlink report verify`: whether such a file is what was signed, offline.
"""

import asyncio
import datetime as dt
import json
import re
from pathlib import Path
from typing import Any, Final

import click

from cli.cluster import ClusterUnavailable, explained, open_kube
from cli.terminal import printable, printable_json
from kit.clock import utcnow
from kit.contract import SYSTEM_NAMESPACE
from kit.kube import Kube, KubeError

_SINCE = re.compile(r"[1-9][0-9]{0,3}[mhd]", re.ASCII)
_EMBEDDED = re.compile(
    r'<script type="application/json" id="podlink-report">(.*?)</script>', re.DOTALL
)
_SIGNER: Final = "podlink-traces"
_MAX_FILE_BYTES: Final = 64 << 20
_NAMED: Final = 10
"""Pods whose names stand in the summary."""
Json = dict[str, Any]


def render_html(signed: Json) -> str:
    """The report as one file that needs nothing else. The same report gives the same bytes: so verify
    can tell whether what a reader sees is what was signed."""
    from markupsafe import Markup

    from traces.page.render import STATIC, render
    from traces.shortfalls import cut_in_words, shortfalls

    data = json.dumps(signed, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        "report.html",
        {
            "signed": signed,
            "body": signed["report"],
            "record": signed["report"]["record"],
            "cluster": signed["report"].get("cluster"),
            "shortfalls": shortfalls(signed["report"]),
            "cut": cut_in_words(signed["report"]["record"]["chains"]),
            "style": Markup((STATIC / "page.css").read_text()),  # noqa: S704 - a file of ours
            "data": Markup(data),  # noqa: S704 - JSON without a single `<`
        },
    )


@click.group(invoke_without_command=True)
@click.option("--since", default="7d", show_default=True, help="How far back, such as 24h or 7d.")
@click.option("--out", type=click.Path(path_type=Path), help="Name of the files, without ending.")
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
@click.pass_context
def report(
    ctx: click.Context, since: str, out: Path | None, kubeconfig: str | None, context: str | None
) -> None:
    """Write a signed report: coverage, plaintext, denials, policies, bypass annotations, pods without
    a sidecar or with another than the injector makes, certificates, and gaps in the chains of
    records."""
    if ctx.invoked_subcommand is not None:
        return
    from cli.traces_client import TracesUnavailable
    from traces.report import as_file

    if not _SINCE.fullmatch(since):
        raise click.BadParameter(f"{since!r} is not a time such as 24h or 7d", param_hint="--since")
    try:
        signed = asyncio.run(_make(since, kubeconfig, context))
    except (ClusterUnavailable, TracesUnavailable) as e:
        raise click.ClickException(printable(e)) from e
    body = signed["report"]
    base = out or Path(f"podlink-report-{body['made_at'].replace(':', '')}")
    for ending, text in (
        (".json", as_file(signed)),
        (".html", render_html(signed)),
    ):
        path = base.with_name(base.name + ending)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as e:
            raise click.ClickException(f"cannot write {path}: {e.strerror}") from e
        click.echo(path)
    for line in summary(body):
        click.echo(printable(line), err=True)


async def _make(since: str, kubeconfig: str | None, context: str | None) -> Json:
    from cli import posture
    from cli.traces_client import TracesClient

    now = utcnow()
    unit = {"m": "minutes", "h": "hours", "d": "days"}[since[-1]]
    begin = now - dt.timedelta(**{unit: int(since[:-1])})
    async with await open_kube(kubeconfig, context) as kube:
        try:
            cluster = await posture.read(kube, _rfc3339(begin), _rfc3339(now))
        except KubeError as e:
            raise explained(e, "read the cluster", "`list` on namespaces and pods") from e
    return await TracesClient(kubeconfig=kubeconfig, context=context).report(cluster, since)


def summary(body: Json) -> list[str]:
    """The report in a few lines: what it does not cover or prove first."""
    from traces.shortfalls import counted, cut_in_words, shortfalls

    record, cluster = body["record"], body.get("cluster") or {}
    c, chains = record["coverage"], record["chains"]
    losses = {name: n for name, n in chains["losses"].items() if isinstance(n, int)}
    judged = chains["judged"]
    proven = f", {judged['proven']} proven, {judged['unproven']} unproven" if judged else ""
    cut = cut_in_words(chains)
    percent = "nothing to cover" if c["links_percent"] is None else f"{c['links_percent']} %"
    return [
        f"{body['from']} to {body['to']}",
        *(f"‼ {one}" for one in shortfalls(body)),
        f"  mutual TLS        {percent} of {counted(c['mtls_links'] + c['plaintext_links'], 'link')}",
        f"  plaintext edges   {record['plaintext']['count']}",
        f"  denied            {counted(c['denied_links'], 'link')}",
        f"  first seen        {counted(record['first_seen']['count'], 'edge')}",
        f"  without sidecar   {len(cluster.get('not_injected', ()))} pods of enrolled namespaces",
        *_other_sidecars(cluster.get("other_sidecars")),
        f"  bypasses          {len(cluster.get('bypasses', ()))} annotations",
        f"  chains            {chains['chains']}, {counted(chains['missing'], 'record')} missing"
        f"{proven}",
        *([f"                    {cut}"] if cut else []),
        f"  policy changes    {record['policy_changes']['count']}",
        f"  never sent        {sum(v for k, v in losses.items() if k.startswith('dropped'))} dropped, "
        f"{losses.get('sampled_out', 0)} sampled out",
    ]


def _other_sidecars(said: Json | None) -> list[str]:
    """One line, with the first few names: the files have all."""
    if not said:
        return []  # a report of an older version
    if said["unread"]:
        return [f"  other sidecars    not compared: {said['unread']}"]
    names = ", ".join(row["pod"] for row in said["rows"][:_NAMED])
    more = said["count"] - len(said["rows"][:_NAMED])
    rest = (f": {names}" if names else "") + (f" and {more} more" if more else "")
    return [f"  other sidecars    {said['count']} of {said['compared']} pods{rest}"]


@report.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="PEM file of the mesh's roots; makes it offline.",
)
@click.option(
    "--anchors",
    type=click.Path(path_type=Path),
    help="The CA's log, which the store's keeper does not hold: names chains that were cut.",
)
@click.option("--trust-domain", default="cluster.local", show_default=True)
@click.option("--system-namespace", default=SYSTEM_NAMESPACE, show_default=True)
@click.option(
    "-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True
)
@click.option("--kubeconfig", type=click.Path(), help="Where to read the bundle, without --bundle.")
@click.option("--context", help="The kubeconfig's context to use.")
def verify_file(
    file: Path,
    bundle: Path | None,
    anchors: Path | None,
    trust_domain: str,
    system_namespace: str,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Check a report (.json or .html): signed by the trace store, unchanged since, and when."""
    from certs.trust.bundle import BundleRefused, TrustBundle
    from traces.report import ReportRefused, verify
    from traces.shortfalls import shortfalls

    try:
        pem = (
            bundle.read_bytes()
            if bundle
            else asyncio.run(_bundle(kubeconfig, context, system_namespace))
        )
        try:
            roots = TrustBundle.from_pem(trust_domain, 0, pem)
        except BundleRefused as e:
            raise ReportRefused(f"cannot be judged by {bundle or 'the bundle'}: {e}") from e
        raw, shown = read_report(file)
        proven = verify(raw, roots, utcnow())
        expected = f"spiffe://{trust_domain}/ns/{system_namespace}/sa/{_SIGNER}"
        if proven.identity != expected:
            raise ReportRefused(f"signed by {proven.identity}, which is not {expected}")
        if shown is not None and shown != render_html(raw):
            raise ReportRefused(
                "the signature holds for the data inside, but the text around it is not what "
                "this version of podlink makes of it: trust the JSON only"
            )
        anchored = _anchored(anchors, proven.body, roots, system_namespace) if anchors else None
    except OSError as e:
        raise click.ClickException(f"cannot read {e.filename}: {e.strerror}") from e
    except (ReportRefused, ClusterUnavailable) as e:
        if output == "json":
            click.echo(printable_json({"sound": False, "problem": str(e)}))
            raise click.exceptions.Exit(1) from e
        raise click.ClickException(f"{file}: {printable(e)}") from e
    if output == "json":
        facts: Json = {"sound": True, "signed_by": proven.identity, "serial": proven.serial}
        facts["shortfalls"] = shortfalls(proven.body)
        if anchored is not None:
            facts["anchors"] = anchored
        click.echo(printable_json({**facts, "signed_at": _rfc3339(proven.at)}))
        return
    click.echo(f"✓ signed by {printable(proven.identity)} with leaf {proven.serial}")
    click.echo(f"✓ at {_rfc3339(proven.at)}, unchanged since")
    if anchored is not None:
        click.echo(f"✓ holds all that {anchored} anchors of the CA's log say")
    for line in summary(proven.body):
        click.echo(printable(line))


def _anchored(log: Path, body: Json, roots: Any, system_namespace: str) -> int:
    """How many anchors of the CA's log the report holds to. Raises ReportRefused or OSError."""
    from certs.evidence.signed import StatementRefused
    from certs.names import CA_ACCOUNT
    from cli.anchors import compare, read_log
    from traces.report import ReportRefused

    ca = f"spiffe://{roots.trust_domain}/ns/{system_namespace}/sa/{CA_ACCOUNT}"
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            found = compare(body, read_log(lines, roots, ca))
    except StatementRefused as e:
        raise ReportRefused(str(e)) from e
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise ReportRefused(f"the CA's log contradicts it: {found.problems[0]}{more}")
    return found.anchors


def read_report(file: Path) -> tuple[Any, str | None]:
    """The signed report of a file, and the whole text if it is HTML. Raises ReportRefused or OSError."""
    from traces.report import ReportRefused, read_file, read_json

    if file.stat().st_size > _MAX_FILE_BYTES:
        raise ReportRefused("too large for a report")
    try:
        text = file.read_text(encoding="utf-8")
        found = _EMBEDDED.findall(text)
        if len(found) == 1:
            return read_json(found[0]), text
        return read_file(text), None
    except UnicodeDecodeError as e:
        raise ReportRefused("neither a report in JSON nor one in HTML") from e


async def _bundle(kubeconfig: str | None, context: str | None, namespace: str) -> bytes:
    async with await open_kube(kubeconfig, context) as kube:
        return await _read_bundle(kube, namespace)


async def _read_bundle(kube: Kube, namespace: str) -> bytes:
    path = f"/api/v1/namespaces/{namespace}/configmaps/podlink-bundle"
    try:
        found = await kube.get(path)
        return str(found["data"]["root.pem"]).encode()
    except KubeError as e:
        raise explained(
            e, "read the bundle", f"`get` on configmaps in {namespace}, or --bundle"
        ) from e
    except (KeyError, TypeError) as e:
        raise ClusterUnavailable(f"ConfigMap {namespace}/podlink-bundle has no root.pem") from e


def _rfc3339(at: dt.datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
