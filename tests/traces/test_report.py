"""A report, signed, and everything that can be done to it on the way to an auditor."""

import asyncio
import base64
import copy
import datetime as dt
import json
import re
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from certs.evidence.signed import WorkloadSigner
from certs.trust.bundle import TrustBundle
from certs.trust.contexts import TlsMaterial
from cli.posture import bypasses, not_injected, policies_of
from cli.report import render_html, summary
from cli.report import report as command
from kit.clock import utcnow
from tests.certs.evidence import test_chain
from tests.certs.forge import Forge
from tests.traces.page import shop
from traces.config import TracesConfig
from traces.report import ReportRefused, as_file, record, report, sign, verify
from traces.shortfalls import shortfalls
from traces.writer import Writer

FORGE = Forge()
BUNDLE = TrustBundle.of("cluster.local", 1, [FORGE.root_der])
STORE = "spiffe://cluster.local/ns/podlink-system/sa/podlink-traces"
Json = dict[str, Any]


def signer(identity: str = STORE, forge: Forge = FORGE) -> WorkloadSigner:
    pair = forge.leaf(identity)
    return WorkloadSigner(TlsMaterial(pair.key_pem, pair.chain_pem, forge.root_pem))


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder: Path = tmp_path_factory.mktemp("shop")
    now_ns = time.time_ns()
    shop.write(folder, shop.days(now_ns))
    with closing(sqlite3.connect(folder / "traces.db")) as db:
        db.row_factory = sqlite3.Row
        found = record(db, now_ns // 10**9 - 86400, now_ns // 10**9 + 1, now_ns, BUNDLE)
    cluster = {
        "read_at": "now",
        "not_injected": [{"pod": "a/<b>", "why": "x"}],
        "bypasses": [],
        "policies": [],
    }
    return report(found, cluster, now_ns // 10**9 - 86400, now_ns // 10**9, now_ns, STORE)


def signed_by(body: Json, who: WorkloadSigner) -> Json:
    return sign(copy.deepcopy(body), who, time.time_ns())


def test_a_report_says_what_the_page_says(body: Json) -> None:
    found = body["record"]
    assert 80 < found["coverage"]["links_percent"] < 100
    assert found["plaintext"]["count"] == 4
    assert {row["reasons"][0] for row in found["denied"]["rows"]} == {
        "policy_denied",
        "plaintext_denied",
    }
    assert found["certificates"]["refused"]["count"] == 1
    assert {"rule": "prod/ledger no-rule", "allowed": 0, "denied": 6} in found["policies"]


def test_what_was_signed_verifies_offline_with_the_roots_alone(body: Json) -> None:
    whole = json.loads(json.dumps(signed_by(body, signer())))
    proven = verify(whole, BUNDLE, utcnow())
    assert proven.identity == STORE
    assert proven.body == json.loads(json.dumps(body))


def _flip(text: str) -> str:
    return ("B" if text[20] == "A" else "A").join((text[:20], text[21:]))


FORGERIES: dict[str, Callable[[Json], Any]] = {
    "another number": lambda s: s["report"]["record"]["coverage"].update(plaintext_links=0),
    "a denial left out": lambda s: s["report"]["record"]["denied"]["rows"].pop(),
    "another time": lambda s: s["report"].update({"from": "2001-01-01T00:00:00Z"}),
    "a pod left out": lambda s: s["report"]["cluster"]["not_injected"].clear(),
    "another digest": lambda s: s.update(
        statement=s["statement"].replace('"sha256":"', '"sha256":"0')
    ),
    "another signature": lambda s: s.update(signature=_flip(s["signature"])),
    "no signature": lambda s: s.pop("signature"),
    "no certificates": lambda s: s.update(certificates=""),
    "another kind": lambda s: s.update(
        statement=s["statement"].replace("podlink report", "something")
    ),
    "a later time": lambda s: s.update(statement=s["statement"].replace('_ns":"1', '_ns":"9')),
    "no statement": lambda s: s.pop("statement"),
    "no report": lambda s: s.pop("report"),
    "a part more": lambda s: s.update(comment="approved"),
    "a statement of more": lambda s: s.update(
        statement=s["statement"].replace("{", '{"a":1,', 1),
    ),
    "spaces in the statement": lambda s: s.update(statement=s["statement"].replace(":", ": ", 1)),
    "the root appended": lambda s: s.update(
        certificates=s["certificates"] + "," + base64.b64encode(FORGE.root_der).decode()
    ),
    "a stranger appended": lambda s: s.update(
        certificates=s["certificates"] + "," + base64.b64encode(Forge().root_der).decode()
    ),
    "the signature's twin": lambda s: s.update(signature=_twin(s["signature"])),
    "another spelling": lambda s: s.update(certificates=_respelled(s["certificates"])),
}


def _twin(signature: str) -> str:
    """(r, n - s) holds wherever (r, s) does."""
    r, s = decode_dss_signature(base64.b64decode(signature))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return base64.b64encode(encode_dss_signature(r, order - s)).decode()


def _respelled(text: str) -> str:
    """Base64 with its spare bits set, if it has any; else with a line end, which decoders skip."""
    if not text.endswith("="):
        return text + "===="
    bare = text.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = alphabet[alphabet.index(bare[-1]) + 1]
    return bare[:-1] + last + text[len(bare) :]


@pytest.mark.attack_row(49)
@pytest.mark.parametrize("what", FORGERIES)
def test_a_changed_report_is_refused(body: Json, what: str) -> None:
    whole = signed_by(body, signer())
    verify(whole, BUNDLE, utcnow())
    FORGERIES[what](whole)
    with pytest.raises(ReportRefused):
        verify(whole, BUNDLE, utcnow())


AS_WRITTEN: dict[str, Callable[[str], str]] = {
    "a name twice": lambda t: t.replace('"kind"', '"kind": "podlink report",\n  "kind"', 1),
    "a name twice at the top": lambda t: t.replace("{\n", '{\n "report": {},\n', 1),
    "a name twice at the end": lambda t: t[:-3] + ',\n "signature": "x"\n}\n',
    "other order": lambda t: (
        json.dumps(dict(reversed(json.loads(t).items())), indent=1, sort_keys=False) + "\n"
    ),
    "no spaces": lambda t: json.dumps(json.loads(t), sort_keys=True) + "\n",
    "a line more": lambda t: t + "\n",
    "a second document": lambda t: t + t,
    "other digits": lambda t: t.replace('"version": 1', '"version": 1.0', 1),
    "escapes": lambda t: t.replace('"kind"', '"\\u006bind"', 1),
}


@pytest.mark.attack_row(49)
@pytest.mark.parametrize("what", AS_WRITTEN)
def test_only_the_file_that_was_written_is_taken(
    body: Json, tmp_path: Path, roots: Path, what: str
) -> None:
    """Nobody's signature is broken by any of these: two readers would see two things."""
    file = tmp_path / "r.json"
    text = as_file(signed_by(body, signer()))
    file.write_text(text)
    assert check(file, roots)[0] == 0
    changed = AS_WRITTEN[what](text)
    assert changed != text
    file.write_text(changed)
    status, said = check(file, roots)
    assert status == 1 and "Error" in said and "Traceback" not in said


@pytest.mark.attack_row(49)
def test_a_name_that_stands_twice_in_a_page_is_refused(
    body: Json, tmp_path: Path, roots: Path
) -> None:
    file = tmp_path / "r.html"
    text = render_html(signed_by(body, signer()))
    file.write_text(text)
    assert check(file, roots)[0] == 0
    file.write_text(text.replace('"signature":', '"signature":"x","signature":', 1))
    assert check(file, roots)[0] == 1


def test_a_report_signed_in_the_future_is_refused(body: Json) -> None:
    """Its statement and signature are in order: only the clock of whoever reads it contradicts."""
    ahead_ns = time.time_ns() + 600 * 10**9
    whole = sign(copy.deepcopy(body), signer(), ahead_ns)
    with pytest.raises(ReportRefused, match="signed in the future"):
        verify(whole, BUNDLE, utcnow())
    assert verify(whole, BUNDLE, utcnow() + dt.timedelta(minutes=6)).identity == STORE


def test_a_signer_that_no_root_vouches_for_is_refused(body: Json) -> None:
    with pytest.raises(ReportRefused, match="no root of the bundle"):
        verify(signed_by(body, signer(forge=Forge())), BUNDLE, utcnow())


def check(file: Path, roots: Path) -> tuple[int, str]:
    done = CliRunner().invoke(command, ["verify", str(file), "--bundle", str(roots)])
    return done.exit_code, done.output


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    path.write_bytes(FORGE.root_pem)
    return path


def test_the_command_takes_the_stores_signature_and_no_other_workloads(
    body: Json, tmp_path: Path, roots: Path
) -> None:
    file = tmp_path / "report.json"
    file.write_text(as_file(signed_by(body, signer())))
    assert check(file, roots) == (0, check(file, roots)[1])
    assert f"signed by {STORE}" in check(file, roots)[1]
    file.write_text(as_file(signed_by(body, signer("spiffe://cluster.local/ns/shop/sa/api"))))
    status, said = check(file, roots)
    assert status == 1 and "which is not" in said


def test_a_page_whose_text_was_changed_is_refused_though_its_data_was_not(
    body: Json, tmp_path: Path, roots: Path
) -> None:
    file = tmp_path / "report.html"
    page = render_html(signed_by(body, signer()))
    file.write_text(page)
    assert check(file, roots)[0] == 0
    file.write_text(page.replace("policy_denied", "all is well", 1))
    status, said = check(file, roots)
    assert status == 1 and "trust the JSON only" in said
    file.write_text("<p>hello")
    assert check(file, roots)[0] == 1


@pytest.mark.attack_row(43)
def test_names_in_a_page_stay_text(body: Json) -> None:
    changed = copy.deepcopy(body)
    changed["cluster"]["not_injected"] = [{"pod": shop.EVIL, "why": "</script><script>x()"}]
    page = render_html(signed_by(changed, signer()))
    assert "<script>x()" not in page and "<img src=x" not in page
    assert page.count("<script") == 1 and "\u202e" not in page


# --- what the API says ---------------------------------------------------------------------


def obj(name: str, namespace: str = "", **metadata: Any) -> Json:
    return {
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {"containers": []},
    }


ENROLLED = obj("shop", labels={"podlink.dev/inject": "enabled"})
PROXY = {"name": "podlink-proxy"}


def test_a_pod_of_an_enrolled_namespace_without_our_proxy_in_its_spec_is_told() -> None:
    meshed = replace_spec(obj("good", "shop", labels={}), initContainers=[PROXY])
    liar = obj("liar", "shop", labels={"podlink.dev/injected": "true"})
    out = obj("out", "shop", labels={"podlink.dev/inject": "disabled"})
    other = obj("other", "elsewhere", labels={})
    done = {**obj("job", "shop", labels={}), "status": {"phase": "Succeeded"}}
    found = not_injected([ENROLLED, obj("elsewhere")], [meshed, liar, out, other, done])
    assert [one["pod"] for one in found] == ["shop/liar", "shop/out"]
    assert "disabled" in found[1]["why"]


def replace_spec(one: Json, **spec: Any) -> Json:
    return {**one, "spec": {**one["spec"], **spec}}


OTHERS: Json = {
    "compared": 3, "count": 1, "left_out": 0, "unread": "",
    "rows": [{"pod": "shop/forged", "why": "container podlink-proxy: <env>"}],
}  # fmt: skip


def test_a_pod_whose_sidecar_is_another_is_named_and_stands_among_the_shortfalls(
    body: Json,
) -> None:
    told = copy.deepcopy(body)
    told["cluster"]["other_sidecars"] = OTHERS
    assert "1 pod with a sidecar other than the injector makes" in shortfalls(told)
    assert "  other sidecars    1 of 3 pods: shop/forged" in summary(told)
    page = render_html(signed_by(told, signer()))
    assert "shop/forged" in page and "container podlink-proxy: &lt;env&gt;" in page
    told["cluster"]["other_sidecars"] = {**OTHERS, "count": 0, "rows": []}
    assert "  other sidecars    0 of 3 pods" in summary(told)
    assert shortfalls(told) == shortfalls(body)


def test_a_report_for_which_nobody_compared_the_sidecars_says_so(body: Json) -> None:
    told = copy.deepcopy(body)
    why = "no injector is installed"
    told["cluster"]["other_sidecars"] = {**OTHERS, "count": 0, "rows": [], "unread": why}
    assert any(why in one for one in shortfalls(told))
    assert f"  other sidecars    not compared: {why}" in summary(told)
    assert f"Not compared: {why}" in render_html(signed_by(told, signer()))


def test_annotations_that_open_a_way_around_are_told_and_others_are_not() -> None:
    pod = obj(
        "a", "shop",
        annotations={
            "config.podlink.dev/skip-inbound-ports": "22",
            "config.podlink.dev/plaintext": "deny",
            "config.podlink.dev/workers": "2",
        },
    )  # fmt: skip
    namespace = obj("shop", annotations={"config.podlink.dev/plaintext": "allow"})
    found = bypasses([namespace], [pod])
    assert [(b["name"], b["annotation"]) for b in found] == [
        ("shop", "plaintext"),
        ("shop/a", "skip-inbound-ports"),
    ]


def test_a_policy_that_was_changed_in_this_time_is_told() -> None:
    old = obj("old", "prod", creationTimestamp="2026-01-01T00:00:00Z")
    changed = obj(
        "new", "prod",
        creationTimestamp="2026-01-01T00:00:00Z",
        managedFields=[
            {"time": "2026-03-01T00:00:00Z"},
            {"time": "2026-09-01T00:00:00Z", "subresource": "status"},
        ],
    )  # fmt: skip
    found = policies_of([old, changed], "2026-02-01T00:00:00Z")
    assert [(p["policy"], p["changed_in_this_time"]) for p in found] == [
        ("prod/new", True),
        ("prod/old", False),
    ]
    assert not policies_of([changed], "2026-04-01T00:00:00Z")[0]["changed_in_this_time"]


def as_request(items: list[Json]) -> ExportTraceServiceRequest:
    """Spans as the store gives them back, as a sidecar would have sent them."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for item in items:
        span = spans.add()
        span.trace_id = bytes.fromhex(item.get("trace_id", "ab" * 16))
        span.span_id, span.name = bytes.fromhex(item["span_id"]), item["name"]
        span.start_time_unix_nano = int(item.get("start_unix_ns", "10"))
        span.end_time_unix_nano = int(item.get("end_unix_ns", "10"))
        for key, value in item["attributes"].items():
            said = span.attributes.add()
            said.key = key
            if isinstance(value, bool):
                said.value.bool_value = value
            elif isinstance(value, int):
                said.value.int_value = value
            else:
                said.value.string_value = value
    return request


def test_a_record_missing_from_a_chain_is_counted(tmp_path: Path) -> None:
    config = TracesConfig(db_path=tmp_path / "t.db", token_path=tmp_path / "token")

    async def keep() -> None:
        writer = Writer(config)
        writer.start()
        await writer.write(as_request(test_chain.written(20, 5)))
        await writer.stop()

    asyncio.run(keep())
    now_s = int(time.time())

    def chains() -> Json:
        found: Json = record(db, now_s - 3600, now_s + 60, now_s * 10**9, test_chain.BUNDLE)[
            "chains"
        ]
        return found

    with closing(sqlite3.connect(config.db_path)) as db:
        db.row_factory = sqlite3.Row
        whole = chains()
        assert (whole["missing"], whole["judged"]["proven"]) == (0, 20)
        db.execute("DELETE FROM spans WHERE sequence = 7")
        holed = chains()
    assert holed["missing"] == 1 and holed["gaps"][0]["missing"] == 1
    assert holed["judged"]["proven"] < 20
    assert (holed["judged"]["spans"], holed["judged"]["of_spans"]) == (24, 24)
    assert holed["losses"]["sidecars"] == 1


def kept(path: Path, *batches: list[Json]) -> sqlite3.Connection:
    """A store that got these, one after the other."""
    config = TracesConfig(db_path=path / "t.db", token_path=path / "token")

    async def keep() -> None:
        writer = Writer(config)
        writer.start()
        for batch in batches:
            await writer.write(as_request(batch))
        await writer.stop()

    asyncio.run(keep())
    db = sqlite3.connect(config.db_path)
    db.row_factory = sqlite3.Row
    return db


def week(db: sqlite3.Connection) -> Json:
    now_s = int(time.time()) + 60
    found = record(db, now_s - 7 * 86400, now_s, now_s * 10**9, test_chain.BUNDLE)
    return report(found, None, now_s - 7 * 86400, now_s, now_s * 10**9, STORE)


def now_told(items: list[Json]) -> list[Json]:
    now_ns = str(time.time_ns())
    return [{**item, "start_unix_ns": now_ns, "end_unix_ns": now_ns} for item in items]


def test_a_store_that_lost_its_record_gives_no_clean_report(tmp_path: Path, roots: Path) -> None:
    """Two refusals were told to a store that is gone; the one after it got the chain from 9 on."""
    links = [item for item in test_chain.written(12, 99) if item["name"] != "chain checkpoint"]
    with closing(kept(tmp_path, now_told(links[8:]))) as db:
        body = week(db)
    chains = body["record"]["chains"]
    assert (chains["missing"], chains["before"]["records"], chains["cut"]["records"]) == (0, 8, 0)
    assert chains["before"]["rows"][0]["from"] == 9
    whole = signed_by(body, signer())
    for name, text in (("r.json", as_file(whole)), ("r.html", render_html(whole))):
        file = tmp_path / name
        file.write_text(text)
        status, said = check(file, roots)
        lines = said.splitlines()
        assert status == 0 and lines[2].startswith(body["from"])
        assert re.match(r"‼ the record covers \d+ s of 7 d: it begins at 2", lines[3])
        assert lines[4] == "‼ 4 records unproven, and none proven by a signature"
        assert lines[5].startswith("‼ 8 records before the record begins: 1 chain had begun")
    page = render_html(whole)
    assert page.index("‼ the record covers") < page.index('<ul class="cards">')
    assert "8 records before the record begins" in page


def test_an_empty_record_says_that_it_covers_nothing(tmp_path: Path) -> None:
    with closing(kept(tmp_path)) as db:
        body = week(db)
    assert summary(body)[1] == "‼ the record covers nothing of 7 d: it holds no link"
    assert "‼ the record covers nothing of 7 d" in render_html(signed_by(body, signer()))


def test_a_head_that_retention_cut_is_told_and_is_no_alarm(tmp_path: Path) -> None:
    items = test_chain.written(20, 10)
    with closing(kept(tmp_path, items[:11], items[11:])) as db:
        db.execute("UPDATE edges SET first_ns = 1")
        db.execute("UPDATE chains SET first_ns = first_ns - 1000000000")
        db.execute("UPDATE spans SET received_ns = received_ns - 1000000000 WHERE id <= 11")
        assert shortfalls(week(db)) == []
        db.execute("DELETE FROM spans WHERE id <= 11")
        body = week(db)
    assert body["record"]["chains"]["before"]["records"] == 0
    assert shortfalls(body) == []
    told = "of 1 chain 10 earlier records are kept no more: deleted by age or size"
    assert told in "\n".join(summary(body)) and told in render_html(signed_by(body, signer()))


def test_a_chain_cut_inside_of_a_batch_or_forgotten_is_no_alarm(tmp_path: Path) -> None:
    one, other = test_chain.written(6, 6), test_chain.written(8, 8)
    with closing(kept(tmp_path, one + other, test_chain.written(6, 6)[3:])) as db:
        db.execute("UPDATE edges SET first_ns = 1")
        alarmed = week(db)["record"]["chains"]
        assert (alarmed["before"]["records"], alarmed["cut"]["records"]) == (3, 0)
        db.execute("DELETE FROM spans WHERE id BETWEEN 8 AND 10")
        found = week(db)["record"]["chains"]
    # The third may have been known, silent for longer than anything is kept, and forgotten.
    assert (found["before"]["records"], found["cut"]) == (0, {"chains": 2, "records": 6})


def test_a_chain_that_began_before_this_time_lacks_no_head(tmp_path: Path) -> None:
    items = test_chain.written(20, 10)
    with closing(kept(tmp_path, items[:11], items[11:])) as db:
        db.execute("UPDATE spans SET received_ns = 1 WHERE id <= 11")
        found = week(db)["record"]["chains"]
    assert (found["records"], found["before"]["records"], found["cut"]["records"]) == (10, 0, 0)


def test_a_report_of_an_older_version_is_still_summed_up(body: Json) -> None:
    older = copy.deepcopy(body)
    del older["record"]["chains"]["before"], older["record"]["chains"]["cut"]
    assert summary(older)[0].startswith(body["from"])
    assert "Chains of records" in render_html(signed_by(older, signer()))


def test_a_count_of_one_is_one_edge(body: Json) -> None:
    single = copy.deepcopy(body)
    single["record"]["coverage"].update(edges=1, denied_links=1)
    assert "links on 1 edge<" in render_html(signed_by(single, signer()))
    assert "  denied            1 link" in summary(single)


def test_a_bundle_that_is_none_is_named_in_one_line(body: Json, tmp_path: Path) -> None:
    file, roots = tmp_path / "r.json", tmp_path / "hostname"
    file.write_text(as_file(signed_by(body, signer())))
    roots.write_text("laptop\n")
    status, said = check(file, roots)
    assert (status, said) == (
        1,
        f"Error: {file}: cannot be judged by {roots}: not PEM certificates\n",
    )


def lossy(counts: object) -> ExportTraceServiceRequest:
    said = {"counts": counts, "pod": "shop/api-1"}
    attributes = {
        "podlink.chain.id": "ab" * 16,
        "podlink.chain.sequence": 1,
        "podlink.chain.statement": json.dumps(said),
    }
    item = {"span_id": "cd" * 8, "name": "chain checkpoint", "attributes": attributes}
    return as_request([{**item, "trace_id": secrets.token_hex(16)}])


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"sampled_out": 7, "dropped_denied": 2, "reported": 99}, (7, 2)),
        ({"sampled_out": "7", "dropped_denied": -2}, (0, 0)),
        ({"sampled_out": 1 << 80, "dropped_denied": True}, (1 << 53, 0)),
        ([1], (0, 0)),
        (None, (0, 0)),
    ],
)
def test_what_a_sidecar_says_it_never_sent_is_told_by_its_newest_word(
    tmp_path: Path, counts: object, told: tuple[int, int]
) -> None:
    config = TracesConfig(db_path=tmp_path / "t.db", token_path=tmp_path / "token")

    async def keep() -> None:
        writer = Writer(config)
        writer.start()
        await writer.write(lossy({"sampled_out": 1, "dropped_denied": 1}))
        await writer.write(lossy(counts))
        await writer.stop()

    asyncio.run(keep())
    now_s = int(time.time())
    with closing(sqlite3.connect(config.db_path)) as db:
        db.row_factory = sqlite3.Row
        found = record(db, now_s - 3600, now_s + 60, now_s * 10**9, None)["chains"]["losses"]
    assert (found["sampled_out"], found["dropped_denied"]) == told
    assert (found["sidecars"], found["count"]) == (1, int(any(told)))


def test_the_report_shows_what_changed_in_policies_and_escapes_it(body: Json) -> None:
    changed = copy.deepcopy(body)
    changes = {
        "watched_since": "2026-11-01T00:00:00Z",
        "watched_until": "2026-11-02T00:00:00Z",
        "count": 1,
        "left_out": 0,
        "rows": [
            {
                "policy": "prod/db",
                "change": "deleted",
                "after": "a",
                "seen": "b",
                "generation": 3,
                "state": "Current",
                "diff": "-allow: <script>",
            }
        ],
    }
    changed["record"]["policy_changes"] = changes
    page = render_html(signed_by(changed, signer()))
    assert "deleted: prod/db" in page
    assert "-allow: &lt;script&gt;" in page
