"""What the CA saw of a chain makes visible that whoever keeps the store took records out."""

import json
import logging
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from certs.client.ca import CaClient
from certs.evidence.anchor import Head, anchor_statement, read_anchor
from certs.evidence.chain import EvidenceMalformed
from certs.evidence.signed import WorkloadSigner
from certs.trust.contexts import TlsMaterial
from cli.report import report as command
from kit.logs import JsonFormatter
from kit.tasks import spawn, stop
from tests.certs.forge import Forge
from tests.certs.running_ca import running_ca
from tests.patience import PATIENCE_S
from traces.report import as_file, report, sign

pytestmark = pytest.mark.attack_row(65)
FORGE = Forge()
CA = "spiffe://cluster.local/ns/podlink-system/sa/podlink-ca"
STORE = "spiffe://cluster.local/ns/podlink-system/sa/podlink-traces"
API = "spiffe://cluster.local/ns/shop/sa/api"
CHAIN = "ab" * 16
Json = dict[str, Any]


def signer(identity: str, forge: Forge = FORGE) -> WorkloadSigner:
    return WorkloadSigner(TlsMaterial(*forge.leaf(identity), forge.root_pem))


def line(sequence: int, who: str = CA, chain: str = CHAIN, **more: str) -> str:
    said = anchor_statement(Head(chain, sequence, "cd" * 32), "shop/api-1", API, time.time_ns())
    signed = signer(who).sign(said)
    facts = {"statement": said, "signature": signed.signature, "certificates": signed.certificates}
    return json.dumps({"message": "chain anchor", **facts, **more})


def a_report(heads: dict[str, int], left_out: int = 0) -> str:
    chains: Json = {
        "chains": 1, "records": 1, "missing": 0, "gaps": [], "judged": None,
        "heads": {"count": len(heads), "left_out": left_out, "rows": heads},
        "losses": {"sidecars": 0},
    }  # fmt: skip
    nothing: Json = {"count": 0, "left_out": 0, "rows": []}
    found: Json = {
        "recorded_since": None,
        "coverage": dict.fromkeys(
            ("links_percent", "mtls_links", "plaintext_links", "denied_links", "edges"), 0
        ),
        "plaintext": nothing, "first_seen": nothing, "policy_changes": nothing, "chains": chains,
    }  # fmt: skip
    now_s = int(time.time())
    body = report(found, None, now_s - 3600, now_s + 60, now_s * 10**9, STORE)
    return as_file(sign(body, signer(STORE), time.time_ns()))


def verify(folder: Path, text: str, log: str) -> tuple[int, str]:
    (folder / "r.json").write_text(text)
    (folder / "ca.log").write_text(log)
    (folder / "root.pem").write_bytes(FORGE.root_pem)
    options = ["--bundle", str(folder / "root.pem"), "--anchors", str(folder / "ca.log")]
    done = CliRunner().invoke(command, ["verify", str(folder / "r.json"), *options])
    return done.exit_code, done.output


def test_a_chain_that_was_cut_or_taken_out_is_named(tmp_path: Path) -> None:
    log = "\n".join(['{"message": "certificate issued"}', "no JSON", line(5), line(9)])
    status, said = verify(tmp_path, a_report({CHAIN: 9}), log)
    assert status == 0 and "all that 2 anchors" in said, said
    status, said = verify(tmp_path, a_report({CHAIN: 7}), log)
    assert status == 1 and "ends at record 7: the store had taken 9" in said
    status, said = verify(tmp_path, a_report({}), log)
    assert status == 1 and "is gone: the store had taken 9 records" in said
    assert verify(tmp_path, a_report({}, left_out=3), log)[0] == 0, "it may be among those left out"


@pytest.mark.parametrize("forged", ["another signer", "another number", "no signature", "garbage"])
def test_a_log_that_the_ca_did_not_sign_is_refused(tmp_path: Path, forged: str) -> None:
    bad = {
        "another signer": line(9, STORE),
        "another number": line(9).replace('\\"sequence\\":9', '\\"sequence\\":8'),
        "no signature": line(9, signature=""),
        "garbage": json.dumps({"message": "chain anchor", "statement": "[" * 9}),
    }[forged]
    status, said = verify(tmp_path, a_report({CHAIN: 9}), bad)
    assert status == 1 and "line 1 of the CA's log" in said


async def test_the_ca_writes_down_what_a_sidecar_says_of_its_chain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_ca(tmp_path) as ca:
        client: CaClient = ca.client(ca.fake.add_pod())
        client.head = lambda: Head(CHAIN, 41, "cd" * 32)
        running = spawn(client.run(), name="client under test")
        import asyncio

        await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
        await stop(running)
        [record] = [r for r in caplog.records if r.getMessage() == "chain anchor"]
        written = JsonFormatter().format(record)
        from cli.anchors import read_log

        [anchor] = read_log([written], ca.authority.bundle, CA)
        assert (anchor.head.sequence, anchor.pod, anchor.identity) == (41, "shop/api-1", API)
        # What is malformed costs the caller its anchor and nothing else.
        client.head = lambda: None
        from certs.client.ca import make_request
        from proto import ca_pb2

        request = ca_pb2.SignRequest(csr_der=make_request()[1])
        request.head.chain, request.head.hash = "x" * 10_000, secrets.token_hex(32)
        token = ca.fake.add_pod("shop", "web-1", "web")
        async with ca.stub() as stub:
            metadata = (("authorization", f"Bearer {token}"),)
            assert (await stub.Sign(request, metadata=metadata, timeout=PATIENCE_S)).chain_der
        assert len([r for r in caplog.records if r.getMessage() == "chain anchor"]) == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, anchor_statement(Head(CHAIN, 1, "cd" * 32), "p", API, 1) + " "],
)
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(EvidenceMalformed):
        read_anchor(text)
