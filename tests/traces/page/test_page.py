"""The page in a real browser: what a person sees, types and clicks."""

import csv
import io
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.records import denied, outbound
from tests.traces.page import shop
from tests.traces.page.conftest import Reader, reader_of
from tests.traces.process import StoreProcess
from tests.traces.spans import payload_of, send
from traces.page.pages import TITLES

POLICY = """\
apiVersion: podlink.dev/v1alpha1
kind: LinkPolicy
metadata: {name: cache, namespace: prod}
spec:
  allow:
    - from: [{namespace: shop, serviceAccount: cart}]
      ports: [6379]
    - from: [{namespace: shop, serviceAccount: nobody}]
"""


def test_the_first_page_lists_what_needs_a_decision_worst_first(reader: Reader) -> None:
    expect(reader.page.locator("h1")).to_have_text("Needs a decision")
    kinds = reader.page.locator("table.rows tbody tr td:first-child .badge").all_inner_texts()
    assert "denied" in kinds[0]
    assert [k.split()[-1] for k in kinds].index("plaintext") > 0
    first = reader.page.locator("table.rows tbody tr").first
    expect(first).to_contain_text("batch/report")
    expect(first).to_contain_text("prod/ledger allow[0] allows shop/orders, not batch/report")
    first.locator("summary").click()
    expect(first.locator("pre")).to_contain_text("serviceAccount: report")


def test_the_graph_is_drawn_and_marks_states_by_more_than_colour(reader: Reader) -> None:
    reader.open("graph")
    place = reader.page.locator("#graph[data-drawn]")
    place.wait_for()
    marks = reader.page.evaluate(
        """() => Object.fromEntries(document.getElementById("graph").cy.edges().map((e) =>
        [e.data("state"), [e.style("line-style"), e.style("target-arrow-shape"), e.data("label")]]))"""
    )
    assert marks["mtls"][:2] == ["solid", "triangle"]
    assert marks["plaintext"][0] == "dashed" and marks["plaintext"][2].startswith("▲")
    assert marks["denied"][1] == "tee" and marks["denied"][2].startswith("✕")
    pixels = reader.page.evaluate(
        """() => { const c = [...document.querySelectorAll("#graph canvas")];
        const data = (one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
        return c.some((one) => data(one).some((v) => v)); }"""
    )
    assert pixels  # something is really on the canvas
    assert reader.page.locator("table.rows tbody tr").count() >= 19


def test_filters_narrow_every_view_and_stand_in_its_address(reader: Reader) -> None:
    reader.open("graph")
    reader.page.get_by_label("Namespace").select_option("batch")
    reader.page.get_by_role("button", name="Show").click()
    reader.page.wait_for_url("**ns=batch**")
    rows = reader.page.locator("table.rows tbody tr")
    assert rows.count() == 2
    reader.page.get_by_label("State").select_option("denied")
    reader.page.get_by_role("button", name="Show").click()
    reader.page.wait_for_url("**state=denied**")
    assert rows.count() == 1
    here = reader.page.url
    reader.page.get_by_role("link", name="Denied").click()
    assert "ns=batch" in reader.page.url  # a view hands its question on to the next
    reader.page.goto(here)
    assert rows.count() == 1
    reader.page.get_by_role("link", name="Permalink").click()
    assert "from=" in reader.page.url and "since=" not in reader.page.url
    assert rows.count() == 1


def test_times_narrow_what_is_shown(reader: Reader) -> None:
    reader.open("denied?since=24h")
    day = reader.page.locator("h2").first.inner_text()
    reader.open("denied?from=2001-01-01&to=2001-01-02")
    expect(reader.page.locator(".empty")).to_contain_text("No links were recorded")
    assert day.startswith("12 attempts")


def test_the_plaintext_ledger_gives_coverage_and_a_reason_for_each(reader: Reader) -> None:
    reader.open("plaintext")
    meter = reader.page.locator(".meter").inner_text()
    found = re.search(r"([0-9.]+) % of ", meter)
    assert found and 80 < float(found[1]) < 100
    slugs = reader.page.locator("table.rows .slug").all_inner_texts()
    assert set(slugs) == {"external", "unmeshed_peer", "permissive"}
    assert len(slugs) == reader.page.locator("table.rows tbody tr").count() == 4


def test_an_edge_is_new_only_if_nobody_saw_it_before(reader: Reader) -> None:
    reader.open("new?since=4h")
    rows = reader.page.locator("table.rows tbody tr").all_inner_texts()
    assert len(rows) == 2
    assert any("batch/report" in row and "prod/ledger" in row for row in rows)
    assert any("shop/web" in row and "prod/cache" in row for row in rows)


def test_a_links_page_shows_both_sides_their_leaves_and_the_waterfall(reader: Reader) -> None:
    reader.open("graph?q=ledger&state=mtls")
    reader.page.get_by_role("link", name="trace").first.click()
    reader.page.wait_for_selector("h3")
    text = reader.page.locator("main").inner_text()
    for said in (
        "What the source saw",
        "What the destination saw",
        "chosen by least-open",
        "direct: the TCP source is an IP of the peer’s leaf",
        "spiffe://cluster.local/ns/shop/sa/orders",
        "The CA issued it at",
        "prod/ledger-7d9f on node-1",
    ):
        assert said in text, said
    assert reader.page.locator(".waterfall tbody tr").count() == 2


def test_certificates_show_what_is_overdue_and_what_was_refused(reader: Reader) -> None:
    reader.open("certificates")
    first = reader.page.locator("table.rows").last.locator("tbody tr").first
    expect(first).to_contain_text("renewal overdue")
    expect(first).to_contain_text("prod/mail-7d9f")
    expect(reader.page.locator("main")).to_contain_text("token_refused")


def test_a_replayed_policy_says_what_it_would_cut_and_has_an_address(reader: Reader) -> None:
    reader.open("replay")
    reader.page.locator("textarea").fill(POLICY)
    reader.page.get_by_role("button", name="Replay").click()
    reader.page.wait_for_url("**policy=**")
    expect(reader.page.locator("main")).to_contain_text("prod/cache allow[1]")  # nobody used it
    cut = reader.page.locator("tr", has=reader.page.locator(".badge.cut")).all_inner_texts()
    assert any("shop/catalog" in row and "prod/cache" in row for row in cut)
    kept = reader.page.locator("tr", has=reader.page.locator(".badge.kept")).all_inner_texts()
    assert kept and all("shop/cart" in row and ":6379" in row for row in kept)
    again = reader.page.url
    reader.page.goto(again)
    assert reader.page.locator("textarea").input_value().split() == POLICY.split()
    reader.page.locator("textarea").fill("kind: [")
    reader.page.get_by_role("button", name="Replay").click()
    expect(reader.page.locator(".said")).to_contain_text("is no YAML")


def test_exports_hold_what_the_view_holds(reader: Reader) -> None:
    reader.open("graph?ns=batch")
    with reader.page.expect_download() as csv_file:
        reader.page.get_by_role("link", name="CSV", exact=True).click()
    text = Path(csv_file.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["state"] for row in rows} == {"denied", "mtls"}
    with reader.page.expect_download() as json_file:
        reader.page.get_by_role("link", name="JSON").click()
    body = json.loads(Path(json_file.value.path()).read_text())
    assert [row["source"] for row in body["rows"]] == [row["source"] for row in rows]


@pytest.mark.parametrize("view", [v for v in TITLES if v != "overview"])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_every_view_exports(shop_store: StoreProcess, view: str, form: str) -> None:
    request = urllib.request.Request(
        shop_store.url(f"/{view}.{form}"), headers={"X-Podlink-Token": "a-token-for-tests"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        assert "attachment" in answer.headers["Content-Disposition"]
        assert answer.read()


def test_the_page_is_used_by_keyboard_alone(reader: Reader) -> None:
    keys = reader.page.keyboard
    keys.press("Tab")
    assert reader.page.evaluate("document.activeElement.className") == "skip"
    keys.press("2")
    reader.page.wait_for_selector("#graph[data-drawn]")
    reader.page.locator("#graph").focus()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    said = reader.page.locator("#graph-said")
    assert "From:" in said.inner_text()
    keys.press("Enter")
    reader.page.wait_for_url(re.compile("identity=|q="))
    keys.press("4")
    reader.page.wait_for_url("**/denied?**")
    reader.open("denied")
    keys.press("/")
    assert reader.page.evaluate("document.activeElement.type") == "search"
    keys.press("Escape")
    keys.press("j")
    keys.press("Enter")
    reader.page.wait_for_url("**/trace?**")
    keys.press("?")
    expect(reader.page.locator("dialog[open]")).to_be_visible()


def test_without_scripts_the_tables_say_it_all(shop_store: StoreProcess, browser: Browser) -> None:
    it = reader_of(shop_store, browser, java_script_enabled=False)
    it.open("graph")
    assert it.page.locator("table.rows tbody tr").count() >= 19
    expect(it.page.locator("#graph")).to_be_hidden()
    it.open("replay")
    it.page.locator("textarea").fill(POLICY)
    it.page.get_by_role("button", name="Replay").click()
    assert it.page.locator(".badge.cut").count()
    it.context.close()


def test_printed_it_is_a_document_without_controls(reader: Reader) -> None:
    reader.open("denied")
    reader.page.emulate_media(media="print")
    expect(reader.page.locator(".top")).to_be_hidden()
    expect(reader.page.locator(".filter")).to_be_hidden()
    expect(reader.page.locator(".printed")).to_be_visible()
    expect(reader.page.locator("table.rows")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_enough(
    shop_store: StoreProcess, browser: Browser, scheme: str
) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1, measured on what the browser computed."""
    it = reader_of(shop_store, browser, color_scheme=scheme)
    for view in ("", "plaintext", "certificates", "replay"):
        it.open(view)
        assert it.page.evaluate(_CONTRAST) == [], (scheme, view)
    it.context.close()


_CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


@pytest.fixture
def evil_store(tmp_path: Path) -> Iterator[StoreProcess]:
    evil = shop.EVIL
    out = outbound(
        source_pod=f"shop/{evil}",
        source_identity=f"spiffe://cluster.local/ns/shop/sa/{evil}",
        service=evil,
        rule=evil,
        policy=evil,
        destination_identity=f"javascript:alert(3)//{evil}",
        endpoint_choice=evil,
    )
    formula = f"=cmd|' /C calc'!A0{evil}"
    bad = denied(
        source_identity=formula, source_pod=formula, nearest_rule=evil, reason=evil, service=evil
    )
    requests = [shop.request(f"shop/{evil}", out, bad)]
    requests[0].resource_spans[0].scope_spans[0].spans[0].name = "link"
    extra = requests[0].resource_spans[0].scope_spans[0].spans.add()
    extra.CopyFrom(requests[0].resource_spans[0].scope_spans[0].spans[0])
    extra.span_id, extra.name = b"12345678", evil  # a span that is called so
    now = time.time_ns()
    refused = {"podlink.reason": evil, "podlink.certificate.identity": evil}
    requests.append(shop.certificate("certificate refused", now, "shop/x", **refused))
    requests.append(shop.certificate("certificate issued", now, f"shop/{evil}", serial=evil))
    it = StoreProcess(tmp_path)
    it.start()
    for one in requests:
        send(it, one.SerializeToString())
    yield it
    it.stop()


@pytest.mark.attack_row(43)
def test_a_hostile_name_stays_text_on_every_view(
    evil_store: StoreProcess, browser: Browser
) -> None:
    it = reader_of(evil_store, browser)
    trace_id = evil_store.links("verdict=denied")[0]["trace_id"]
    allowed = evil_store.links("verdict=allowed")[0]["trace_id"]
    for view in (
        *(v for v in TITLES if v != "overview"),
        "",
        f"trace?id={trace_id}",
        f"trace?id={allowed}",
    ):
        it.open(view)
        if view == "graph":
            it.page.wait_for_selector("#graph[data-drawn]")
            it.page.locator("#graph").focus()
            for _ in range(3):
                it.page.keyboard.press("ArrowRight")
            assert "<img" in it.page.locator("#graph-said").inner_text()
        shown = it.page.content()
        assert it.page.locator("img[onerror], main script").count() == 0, view
        assert "\u202e" not in shown, view
        assert not re.search(r"""(href|src|action)="\s*javascript:""", shown), view
    assert (
        "<img src=x onerror" in it.page.locator("main").inner_text()
    )  # the last one shows it, as text
    it.context.close()
    assert it.complaints == []
    assert it.elsewhere() == []


@pytest.mark.attack_row(43)
def test_an_exported_cell_is_no_formula(evil_store: StoreProcess) -> None:
    request = urllib.request.Request(
        evil_store.url("/denied.csv"), headers={"X-Podlink-Token": "a-token-for-tests"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        rows = list(csv.DictReader(io.StringIO(answer.read().decode("utf-8-sig"))))
    assert any(row["source"].startswith("'=cmd") for row in rows)
    assert not any(cell.startswith("=") for row in rows for cell in row.values())


def test_five_hundred_ends_collapse_to_namespaces_and_open_one_by_one(
    tmp_path: Path, browser: Browser
) -> None:
    it = StoreProcess(tmp_path)
    it.start()
    try:
        links = [
            outbound(
                source_identity=f"spiffe://cluster.local/ns/team-{i % 20}/sa/app-{i}",
                source_pod=f"team-{i % 20}/app-{i}-1",
                destination_identity=(
                    f"spiffe://cluster.local/ns/team-{(i * 7 + 3) % 20}/sa/app-{(i * 7 + 3) % 500}"
                ),
                destination_pod="",
            )
            for i in range(500)
        ]
        send(it, payload_of(*links))
        reader = reader_of(it, browser)
        reader.open("graph")
        drawn = reader.page.locator("#graph[data-drawn]")
        assert drawn.get_attribute("data-drawn").startswith("20 nodes")  # type: ignore[union-attr]
        reader.open("graph?open=team-3")
        assert drawn.get_attribute("data-drawn").startswith("44 nodes")  # type: ignore[union-attr]
        reader.open("graph?expand=all")
        assert drawn.get_attribute("data-drawn").startswith("500 nodes")  # type: ignore[union-attr]
        reader.context.close()
        assert reader.complaints == []
    finally:
        it.stop()
