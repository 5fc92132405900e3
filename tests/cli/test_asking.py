"""What the commands that ask proxies make of the answers. The proxies are real in tests/e2e."""

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.endpoints import compare
from cli.links import _shape
from cli.pods import PodName
from cli.tap import line
from cli.verify_link import Check, as_text, connecting, judge, of_end

Json = dict[str, Any]
WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/prod/sa/db"


def out(**changes: Any) -> Json:
    return {
        "direction": "outbound", "verdict": "allowed", "security": "mtls", "trace_id": "ab" * 16,
        "source_identity": WEB, "destination_identity": DB, "destination_pod": "prod/db-0",
        "destination_ip": "10.1.0.9", "original_ip": "10.1.0.9", "original_port": 5432,
        "endpoint_choice": "pod-ip", "direct": True, "tls_cipher": "TLS_AES_128_GCM_SHA256",
        **changes,
    }  # fmt: skip


def judged(into: Json | None, **changes: Any) -> dict[str, Check]:
    found = judge(
        out(**changes), into, source=WEB, destination=DB, pod="prod/db-0", ip="10.1.0.9",
        port=5432, meshed=True,
    )  # fmt: skip
    return {check.name: check for check in found}


def into(**changes: Any) -> Json:
    return out(
        direction="inbound", policy="prod/db", rule="allow[0]", source_ip="10.1.0.7", **changes
    )


def test_a_link_as_it_should_be_passes_every_check() -> None:
    assert {name: check.ok for name, check in judged(into()).items()} == dict.fromkeys(
        judged(into()), True
    )


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("resolution", {}, {"destination_pod": "prod/other"}),
        ("handshake", {}, {"security": "plaintext", "reason": "skip_port"}),
        ("destination's identity", {}, {"destination_identity": WEB}),
        ("source's identity", {"source_identity": DB}, {}),
        ("policy", {"verdict": "denied", "reason": "policy_denied"}, {"verdict": "denied"}),
        ("direct", {"direct": False}, {}),
        ("both sides told", {"trace_id": "cd" * 16}, {}),
    ],
)
def test_what_is_wrong_fails_its_own_check(name: str, theirs: Json, ours: Json) -> None:
    assert judged(into(**theirs), **ours)[name].ok is False


def test_a_side_that_did_not_speak_is_no_proof_of_anything() -> None:
    found = judged(None)
    assert found["source's identity"].ok is None
    assert found["both sides told"].ok is False


def test_a_proxy_without_capture_or_leaf_is_said_to_be_wrong() -> None:
    found = {
        c.name: c.ok for c in of_end("source", {"mode": "redirect", "in_place": False}, {}, {})
    }
    assert found == {"source: capture": False, "source: certificate": False, "source: ready": False}
    [capture, *_] = of_end("source", {"mode": "localhost"}, {}, {})
    assert capture.ok is None


def test_the_text_for_a_ticket_holds_no_character_that_moves_a_cursor() -> None:
    checks = [Check("policy", False, "denied \x1b[2J by \u202eevil")]
    text = as_text(PodName("a", "b"), PodName("c", "d", 1), checks, False)
    assert "\x1b" not in text and "\u202e" not in text and "✗ policy" in text


def test_an_address_of_the_api_reaches_no_shell_as_a_command() -> None:
    for argv in connecting("10.0.0.1", 80):
        assert argv[0] in ("python3", "python", "bash", "nc", "curl", "wget")


SERVICE = {
    "key": "db.prod",
    "endpoints": [
        {"ip": "10.1.0.9", "ready": True, "terminating": False,
         "ports": {"5432": {"port": 5432, "open_links": 2, "ejected": False}},
         "workload": {"pod": "prod/db-0", "identity": DB, "meshed": True}},
        {"ip": "10.1.0.8", "ready": True, "terminating": False,
         "ports": {"5432": {"port": 5432, "open_links": 0, "ejected": True}},
         "workload": {"pod": "prod/db-1", "identity": DB, "meshed": True}},
    ],
}  # fmt: skip


def listed(ip: str, **conditions: bool) -> Json:
    return {"addresses": [ip], "conditions": {"ready": True, **conditions},
            "targetRef": {"namespace": "prod", "name": "x"}}  # fmt: skip


def test_views_that_agree_agree_and_an_ejected_endpoint_is_no_disagreement() -> None:
    rows = compare(SERVICE, [{"endpoints": [listed("10.1.0.9"), listed("10.1.0.8")]}])
    assert [row.agree for row in rows] == [True, True]
    assert rows[1].sidecar == "ejected ready" and rows[0].open_links == 2


def test_what_only_one_of_them_knows_differs() -> None:
    rows = compare(
        SERVICE, [{"endpoints": [listed("10.1.0.9", terminating=True), listed("10.1.0.7")]}]
    )
    assert {row.address.partition(":")[0]: row.agree for row in rows} == {
        "10.1.0.9": False, "10.1.0.8": False, "10.1.0.7": False,
    }  # fmt: skip


def test_a_tapped_line_is_one_line_whatever_the_names_in_it() -> None:
    said = line(out(destination_pod="prod/\n\x1b[31mx", end_ns=10**18, start_ns=10**18 - 5_000_000))
    assert "\n" not in said and "\x1b[31m" not in said.replace(click.style("", fg="green"), "")
    assert "5.0 ms" in said


@pytest.mark.parametrize(
    "raw", ["web", "shop/", "shop/web:0", "shop/web:70000", "a/b/c", "Shop/web"]
)
def test_a_malformed_pod_is_refused(raw: str) -> None:
    with pytest.raises(click.BadParameter):
        PodName.parse(raw, with_port=True)


def test_a_link_is_told_again_when_its_other_side_speaks_or_it_ends() -> None:
    item = {"open": True, "sides": ["outbound"], "verdict": "allowed"}
    assert _shape(item) != _shape({**item, "open": False})
    assert _shape(item) != _shape({**item, "sides": ["outbound", "inbound"]})
    assert _shape(item) == _shape(json.loads(json.dumps(item)))


@pytest.mark.parametrize(
    "argv",
    [["verify-link", "x", "y"], ["tap", "x"], ["endpoints", "x"], ["report", "--since", "1y"]],
)
def test_bad_words_are_named_in_the_usage_error(argv: list[str]) -> None:
    from cli.__main__ import podlink

    done = CliRunner().invoke(podlink, argv)
    assert done.exit_code == 2 and "is not" in done.output
