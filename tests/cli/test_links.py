"""`podlink links` and `podlink trace`, from kubeconfig to terminal, over a real trace store."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cli.links import links, print_table, row
from cli.terminal import printable, printable_json
from cli.trace import bar, in_tree_order, trace
from local.supervisor import SOURCE_ROOT
from tests.cli.api_server import FakeApiServer
from tests.sidecar.telemetry.records import API, DB, denied, inbound_of, outbound
from tests.traces.spans import payload_of, send


def run(command: click.Command, api_server: FakeApiServer, *arguments: str) -> Result:
    config = api_server.kubeconfig(api_server.store.folder)
    return CliRunner().invoke(command, [*arguments, "--kubeconfig", str(config)])


def test_the_table_says_who_talked_to_whom_and_what_became_of_it(api_server: FakeApiServer) -> None:
    out = outbound()
    send(api_server.store, payload_of(out, inbound_of(out), denied(service="vault.prod")))
    result = run(links, api_server)
    assert result.exit_code == 0, result.output
    for text in (
        "shop/api-1",
        API,
        "prod/db-0",
        DB,
        "db.prod:5432",
        "mtls",
        "350B/80.0KiB",
        "5.0ms",
    ):
        assert text in result.output
    assert "denied (policy_denied)" in result.output
    assert out.trace_id.hex() in result.output
    only = run(links, api_server, "--verdict", "denied", "-o", "wide").output
    assert "vault.prod" in only
    assert "db.prod" not in only


def test_json_is_what_the_store_said(api_server: FakeApiServer) -> None:
    out = outbound()
    send(api_server.store, payload_of(out))
    [link] = json.loads(run(links, api_server, "-o", "json").output)["links"]
    assert link["trace_id"] == out.trace_id.hex()


def test_a_trace_shows_both_sides_with_identities_and_certificates(
    api_server: FakeApiServer,
) -> None:
    out = outbound(claimed_traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    send(api_server.store, payload_of(out, inbound_of(out, peer_serial="77" * 16)))
    result = run(trace, api_server, out.trace_id.hex())
    assert result.exit_code == 0, result.output
    for text in ("link outbound", "link inbound", API, DB, "5f" * 16, "77" * 16, "least-open"):
        assert text in result.output
    assert "0af7651916cd43dd8448eb211c80319c (claimed, not verified)" in result.output


def test_a_link_that_policy_refused_says_whether_mtls_had_proved_who_asked(
    api_server: FakeApiServer,
) -> None:
    send(api_server.store, payload_of(denied(service="proven.prod")))
    send(api_server.store, payload_of(denied(service="bare.prod", peer_serial="")))
    said = {
        line.split()[2]: line
        for line in run(links, api_server).output.splitlines()
        if "policy_denied" in line
    }
    assert "none (mtls)" in said["proven.prod:5432"]
    assert "mtls" not in said["bare.prod:5432"]


@pytest.mark.parametrize("width", [40, 80, 100, 400])
def test_no_cell_is_broken_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    identity = {"identity": "spiffe://cluster.local/ns/shop/sa/api"}
    item = {
        "source": {"pod": "shop/api-7c9f6d8b54-x2x7q", **identity},
        "destination": {"pod": "prod/db-0", "port": 5433, **identity},
        "asked": {"service": "db.prod", "port": 5432},
        "security": "plaintext", "verdict": "denied", "reason": "policy_denied",
        "trace_id": "ab" * 16, "start": "2026-01-01T00:00:00Z", "bytes_sent": 1, "duration_ms": 2,
    }  # fmt: skip
    unknown = {"asked": {"service": "nosuch.shop", "port": 80}, "verdict": "failed"}
    print_table([item, unknown], wide=False)
    said = click.unstyle(capsys.readouterr().out).splitlines()
    if width < 400:
        assert said[0].split() == ["AGE", "LINK", "SECURITY", "VERDICT"] and len(said) == 3
        assert (
            "shop/api-7c9f6d8b54-x2x7q -> prod/db-0:5433 plaintext denied (policy_denied)"
            in said[1]
        )
        assert "? -> nosuch.shop:80" in said[2] and "failed" in said[2]
    print_table([item], wide=width < 400)
    full = click.unstyle(capsys.readouterr().out)
    for whole in ("shop/api-7c9f6d8b54-x2x7q", identity["identity"], "db.prod:5432", "ab" * 16):
        assert whole in full
    assert "denied (policy_denied)" in full


@pytest.mark.attack_row(43)
@pytest.mark.parametrize("form", ["table", "wide", "json"])
def test_no_escape_sequence_of_a_span_reaches_the_terminal(
    api_server: FakeApiServer, form: str
) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r\nallowed\u202e\x9b31m\x7f[red]x[/red]"
    out = denied(source_pod=evil, service=evil, source_identity=evil, error=evil, reason=evil)
    send(api_server.store, payload_of(out))
    listed = run(links, api_server, "-o", form).output
    shown = run(trace, api_server, out.trace_id.hex()).output
    for output in (listed, shown):
        assert output.replace("\n", "").isprintable()
        assert "owned" in output
        assert "[red]x[/red]" in output
    assert len(listed.splitlines()) < 5 or form == "json"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"installed": False, "token": None}, "not installed"),
        ({"token": None}, "podlink-traces-token is missing"),
        ({"token": "wrong"}, "refused the token"),
        ({"status": 403}, "you may not ask"),
        ({"status": 401}, "renew your credentials"),
        ({"status": 503}, "does not answer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    api_server: FakeApiServer, broken: dict[str, object], said: str
) -> None:
    for name, value in broken.items():
        setattr(api_server, name, value)
    for result in (run(links, api_server), run(trace, api_server, "ab" * 16)):
        assert result.exit_code == 1
        assert said in result.output
        assert len(result.output.splitlines()) == 1


def test_a_store_that_is_down_is_said_to_be(api_server: FakeApiServer) -> None:
    api_server.store.stop()
    assert "does not answer" in run(links, api_server).output


def test_an_api_server_that_is_gone_is_said_to_be(
    api_server: FakeApiServer, tmp_path: Path
) -> None:
    config = api_server.kubeconfig(tmp_path)
    text = config.read_text()
    config.write_text(text.replace(text.split("127.0.0.1:")[1].split('"')[0], "1"))
    result = CliRunner().invoke(links, ["--kubeconfig", str(config)])
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert "cannot reach the API server at http://127.0.0.1:1: connection refused; " in line
    assert "Connector" not in line


def test_the_dashboard_prints_no_address_of_a_page_that_cannot_be_had(
    api_server: FakeApiServer,
) -> None:
    config = api_server.kubeconfig(api_server.store.folder)
    api_server.store.stop()
    argv = [sys.executable, "-m", "cli", "dashboard", "--no-browser", "--kubeconfig", str(config)]
    done = subprocess.run(
        argv, capture_output=True, text=True, cwd=SOURCE_ROOT, check=False, timeout=60
    )
    assert done.returncode == 1 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "podlink-traces does not answer (503 ServiceUnavailable" in line


@pytest.mark.parametrize("content", [None, "", "not: a kubeconfig", "{{{", "\x00", "[]"])
def test_without_a_kubeconfig_it_says_how_to_give_one(tmp_path: Path, content: str | None) -> None:
    config = tmp_path / "config"
    if content is not None:
        config.write_text(content)
    argv = [sys.executable, "-m", "cli", "links", "--kubeconfig", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=SOURCE_ROOT, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert str(config) in line
    assert "pass --kubeconfig or set KUBECONFIG (podlink local kubeconfig prints one)" in line


def test_an_unknown_trace_is_said_to_be(api_server: FakeApiServer) -> None:
    result = run(trace, api_server, "ab" * 16)
    assert result.output == "Error: no span of this trace is kept\n"


def test_what_is_no_trace_id_is_never_asked_for() -> None:
    assert CliRunner().invoke(trace, ["../../secrets"]).exit_code == 2


def test_a_ring_of_forged_parents_is_shown_once_and_ends() -> None:
    ring = [{"span_id": "a", "parent_span_id": "b"}, {"span_id": "b", "parent_span_id": "a"}]
    alone = {"span_id": "c", "parent_span_id": "c"}
    chain = [{"span_id": f"{n}", "parent_span_id": f"{n - 1}"} for n in range(500)]
    shown = list(in_tree_order([*ring, alone, *chain]))
    assert len(shown) == 503
    assert max(depth for depth, _, _ in shown) == 16


def test_bars_lie_within_the_trace() -> None:
    assert bar(0, 100, 0, 100) == "█" * 32
    assert bar(50, 100, 0, 100) == "·" * 16 + "█" * 16
    assert bar(100, 100, 0, 100) == "·" * 31 + "█"
    assert bar(5, 0, 10, 10) == "█" + "·" * 31


def test_a_row_survives_an_answer_of_the_wrong_types() -> None:
    odd = {"source": 5, "destination": [], "bytes_sent": "x", "duration_ms": None, "start": {}}
    cells = row({**odd, "sides": "ab"}, now=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), wide=True)
    assert len(cells) == 13


def test_printable_text_is_left_alone_and_the_rest_is_spelled_out() -> None:
    assert printable("prod/db-0 é") == "prod/db-0 é"
    assert printable("\x1b[2J\n\u202e") == "\\x1b[2J\\n\\u202e"
    assert json.loads(printable_json({"x": "\x7f\x9b"})) == {"x": "\x7f\x9b"}
    assert "\x7f" not in printable_json("\x7f")
