"""The pure parts of the page."""

import csv
import hashlib
import io
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.linkpolicy import PolicyInvalid
from sidecar.telemetry.attributes import OF_LINKS
from tests.patience import PATIENCE_S
from tests.traces.process import TOKEN, StoreProcess
from traces.edges import Edge, End, Way, coverage, percent
from traces.page import session
from traces.page.asked import Asked, QueryMalformed
from traces.page.decisions import allowing
from traces.page.export import as_csv
from traces.page.layout import Node, levels, positions
from traces.page.packed import pack, unpack
from traces.page.reasons import SAYS
from traces.page.render import STATIC, static_files
from traces.page.replay import read_policies, replay
from traces.page.waterfall import waterfall

ROOT = Path(__file__).parents[3]
WEB = End("identity", "spiffe://cluster.local/ns/shop/sa/web", "shop")
DB = End("identity", "spiffe://cluster.local/ns/prod/sa/db", "prod")
POLICY = """
apiVersion: podlink.dev/v1alpha1
kind: LinkPolicy
metadata: {name: db, namespace: prod}
spec: {allow: [{from: [{namespace: shop, serviceAccount: api}]}]}
"""


def way(security: str = "mtls", verdict: str = "allowed", count: int = 1, **more: object) -> Way:
    facts: dict[str, object] = {
        "reasons": (),
        "policies": (),
        "nearest": (),
        "links": count,
        "opened": 0,
        "bytes_sent": 1,
        "bytes_received": 1,
        "first_ns": 1,
        "last_ns": 2,
        "last_trace": "",
        **more,
    }
    return Way(security, verdict, **facts)  # type: ignore[arg-type]


def edge(*ways: Way, source: End = WEB, destination: End = DB, port: int = 5432) -> Edge:
    return Edge(source, destination, port, (), ways)


def test_an_edge_is_mtls_only_if_every_link_of_it_was() -> None:
    assert edge(way(count=10**6)).state == "mtls"
    mixed = edge(way(count=10**6), way("plaintext"))
    assert (mixed.state, mixed.carried, mixed.protected_percent) == ("mixed", "mixed", 99.9)
    assert edge(way(), way("none", "denied")).state == "denied"
    assert edge(way("none", "failed")).state == "failed"
    assert coverage([mixed]).links_percent == 99.9


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_only_all_is_a_hundred_per_cent_and_only_nothing_is_none(part: int, rest: int) -> None:
    said = percent(part, part + rest)
    assert (said == 100) == (rest == 0 and part > 0)
    assert (said == 0) == (part == 0 and rest > 0)


def test_a_session_ends_with_its_time_its_token_and_any_change() -> None:
    token = b"secret"
    cookie = session.session_cookie(token, 1000.0)
    assert session.is_session(cookie, token, 1000.0)
    assert not session.is_session(cookie, token, 1000.0 + session.LIFETIME_S)
    assert not session.is_session(cookie, b"another", 1000.0)
    assert not session.is_session(cookie, b"", 1000.0)
    assert not session.is_session(session.session_cookie(b"", 1000.0), b"", 1000.0)
    until, _, mac = cookie.partition(".")
    assert not session.is_session(f"{int(until) + 1}.{mac}", token, 1000.0)
    assert b"secret".decode() not in cookie
    assert not session.is_token("", b"")


@given(st.text(max_size=80))
def test_no_cookie_that_was_not_given_is_a_session(raw: str) -> None:
    assert not session.is_session(raw, b"secret", 0.0)


def test_every_vendored_file_is_the_one_that_its_origin_names() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` .* `([0-9a-f]{64})` \|$", (STATIC / "ORIGIN.md").read_text(), re.M
    )
    assert {name for name, _ in rows} == {"cytoscape.min.js"}
    for name, digest in rows:
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest
    assert (STATIC / "cytoscape.LICENSE").exists()


def test_no_file_of_the_page_names_an_address_elsewhere() -> None:
    own = [
        *STATIC.parent.glob("templates/*.html"),
        *(STATIC / n for n in ("page.css", "page.js", "graph.js")),
    ]
    for path in own:
        assert not re.search(
            r"""(src|href|url\(|@import)\W{0,3}(https?:)?//""", path.read_text()
        ), path
        assert not re.search(r"""\sstyle=|\son[a-z]+=|innerHTML|eval\(""", path.read_text()), path
    assert "ORIGIN.md" not in static_files()


def test_the_page_has_words_only_for_reasons_that_there_are() -> None:
    text = (ROOT / "docs/reasons.md").read_text().partition("## How a link was refused")[0]
    assert set(SAYS) <= set(re.findall(r"^\| `([a-z_]+)` \|", text, re.M))
    assert "podlink.reason" in OF_LINKS


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=120))
def test_every_node_has_a_place_of_its_own_whatever_the_graph(raw: list[tuple[int, int]]) -> None:
    pairs = [(f"n{a}", f"n{b}") for a, b in raw]
    ids = sorted({node for pair in pairs for node in pair})
    found = positions([Node(node, f"box{hash(node) % 4}") for node in ids], pairs)
    assert set(found) == set(ids)
    assert len(set(found.values())) == len(ids)


@pytest.mark.parametrize(("ends", "boxes"), [(41, 41), (500, 40), (500, 1), (60, 60)])
def test_a_long_chain_becomes_no_long_line(ends: int, boxes: int) -> None:
    """Where everybody calls the next one there are as many levels as ends."""
    nodes = [Node(f"n{i:03}", f"box{i % boxes}" if boxes < ends else "") for i in range(ends)]
    found = positions(nodes, [(f"n{i:03}", f"n{i + 1:03}") for i in range(ends - 1)])
    xs, ys = zip(*found.values(), strict=True)
    wide, tall = max(xs) - min(xs) + 215, max(ys) - min(ys) + 78
    assert 0.5 < wide / tall < 5
    assert len(set(found.values())) == ends


def test_levels_go_from_the_front_door_to_the_database() -> None:
    found = levels(
        ["db", "api", "web"], [("web", "api"), ("api", "db"), ("web", "db"), ("db", "web")]
    )
    assert found["web"] < found["api"] < found["db"]


def test_a_view_comes_anew_by_itself_only_if_asked_and_a_permalink_never() -> None:
    asked = Asked.parse({"refresh": "1m", "since": "1h"}, 10**18)
    assert asked.refresh_s == 60
    assert "refresh=1m" in asked.query(ns="shop")
    assert "refresh" not in asked.pinned()
    assert Asked.parse({}, 10**18).refresh_s == 0
    with pytest.raises(QueryMalformed, match="refresh must be one of"):
        Asked.parse({"refresh": "0;url=https://example.com"}, 10**18)


@given(st.text(max_size=500))
def test_a_packed_text_comes_back_whole(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert unpack(pack(text)) == text


@pytest.mark.parametrize("raw", ["!", "AAAA", pack("x" * 60_000)[:-4], "ü"])
def test_what_nobody_packed_is_refused(raw: str) -> None:
    with pytest.raises(QueryMalformed):
        unpack(raw)


def test_a_small_packed_text_does_not_grow_without_bound() -> None:
    import base64
    import zlib

    bomb = base64.urlsafe_b64encode(zlib.compress(b"a" * 10_000_000, 9)).decode()
    with pytest.raises(QueryMalformed, match="too long"):
        unpack(bomb)


def test_replay_cuts_what_no_rule_allows_and_says_which_rules_nothing_used() -> None:
    found = replay(read_policies(POLICY), [edge(way(count=7))])
    assert [item.fate for item in found.found] == ["cut"]
    assert found.count("cut") == 7
    assert found.unused == ("prod/db allow[0]",)


def test_replay_knows_that_rules_of_other_policies_add_up_unless_this_one_denies() -> None:
    other = edge(way(policies=("prod/other allow[0]",)))
    assert [i.fate for i in replay(read_policies(POLICY), [other]).found] == ["kept"]
    denying = POLICY.replace("allow:", "deny:").replace(
        "serviceAccount: api", "serviceAccount: web"
    )
    assert [i.fate for i in replay(read_policies(denying), [other]).found] == ["cut"]


def test_replay_opens_only_what_policy_had_denied() -> None:
    policy = read_policies(POLICY.replace("serviceAccount: api", "serviceAccount: web"))
    by_policy = edge(way("none", "denied", reasons=("policy_denied",)))
    assert [i.fate for i in replay(policy, [by_policy]).found] == ["opened"]
    for_plaintext = edge(way("none", "denied", reasons=("identity_mismatch",)))
    assert [i.fate for i in replay(policy, [for_plaintext]).found] == ["still"]


def test_replay_leaves_other_namespaces_and_unchosen_destinations_alone() -> None:
    elsewhere = edge(way(), destination=End("identity", "spiffe://cluster.local/ns/x/sa/y", "x"))
    assert replay(read_policies(POLICY), [elsewhere]).found == ()
    assert replay(read_policies(POLICY), [edge(way())], selected=[]).found == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "kind: [",
        "a: &a [1]\nb: *a",
        "{" * 60_000,
        "[" * 60_000,
        "- " * 30_000,
        "? " * 30_000,
        POLICY + "  surprise: 1\n",
        "x" * 70_000,
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        read_policies(text)
    assert "\n" not in str(refused.value)


def test_a_name_that_kubernetes_does_not_know_never_becomes_yaml() -> None:
    assert "serviceAccount: web" in allowing(edge(way()))
    evil = End("identity", "spiffe://cluster.local/ns/shop}/sa/web, x: y", "shop")
    assert allowing(edge(way(), source=evil)) == ""


@pytest.mark.parametrize(
    "query",
    [
        {"since": "1y"},
        {"since": "-5m"},
        {"from": "yesterday"},
        {"from": "2026-01-02", "to": "2026-01-01"},
        {"state": "odd"},
        {"q": "x" * 3000},
    ],
)
def test_a_malformed_question_names_its_word(query: dict[str, str]) -> None:
    with pytest.raises(QueryMalformed, match="from" if "from" in query else next(iter(query))):
        Asked.parse(query, 10**18)


def test_a_circle_of_forged_parents_still_becomes_rows() -> None:
    def span(own: str, parent: str) -> dict[str, object]:
        return {
            "span_id": own,
            "parent_span_id": parent,
            "name": "x",
            "kind": "client",
            "start_unix_ns": "5",
            "end_unix_ns": "9",
            "attributes": {},
            "resource": {},
        }

    assert len(waterfall([span("a", "b"), span("b", "a"), span("c", "c"), span("d", "a")])) == 4


# --- over HTTP -------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def ask(
    store: StoreProcess, path: str, form: dict[str, str] | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    body = urllib.parse.urlencode(form).encode() if form is not None else None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(store.url(path), body, named)
    try:
        answer = urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE_S)
    except urllib.error.HTTPError as e:
        answer = e
    with answer:
        return answer.status, dict(answer.headers), answer.read().decode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    it = StoreProcess(tmp_path_factory.mktemp("store"))
    it.start()
    yield it
    it.stop()


VIEWS = (
    "/",
    "/graph",
    "/graph.json",
    "/plaintext.csv",
    "/denied",
    "/replay",
    "/trace?id=" + "0" * 32,
)


@pytest.mark.parametrize("path", VIEWS)
@pytest.mark.parametrize(
    "cookie", ["", "podlink_session=1.2", "podlink_session=99999999999." + "0" * 64]
)
def test_a_browser_without_a_session_gets_the_form_and_no_data(
    store: StoreProcess, path: str, cookie: str
) -> None:
    status, headers, body = ask(store, path, Accept="text/html", Cookie=cookie)
    assert status == 401
    assert 'name="token"' in body and "<table" not in body and "Namespace" not in body
    assert headers["Cache-Control"] == "no-store"


def test_logging_in_gives_a_cookie_that_scripts_cannot_read(store: StoreProcess) -> None:
    status, headers, _ = ask(store, "/login", {"token": TOKEN, "next": "graph?since=1h"})
    assert (status, headers["Location"]) == (303, "graph?since=1h")
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Lax" in headers["Set-Cookie"]
    assert TOKEN not in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert ask(store, "/graph", Cookie=cookie)[0] == 200
    (store.folder / "token").write_text("another")
    assert ask(store, "/graph", Cookie=cookie)[0] == 401
    (store.folder / "token").write_text(TOKEN)


@pytest.mark.parametrize(
    "next_page",
    ["//evil.example", "https://evil.example", "/\\evil", "javascript:x", "login", "a\r\nX: y"],
)
def test_logging_in_leads_nowhere_else(store: StoreProcess, next_page: str) -> None:
    status, headers, _ = ask(store, "/login", {"token": TOKEN, "next": next_page})
    assert (status, headers["Location"]) == (303, ".")


def test_a_wrong_token_or_a_form_of_another_site_logs_nobody_in(store: StoreProcess) -> None:
    assert ask(store, "/login", {"token": "wrong"})[0] == 401
    status, headers, _ = ask(store, "/login", {"token": TOKEN}, Sec_Fetch_Site="cross-site")
    assert status == 401 and "Set-Cookie" not in headers


@pytest.mark.parametrize(
    "path", ["/healthz", "/login", "/static/page.js", "/static/none", "/graph", "/nowhere", *VIEWS]
)
def test_every_answer_carries_the_strict_policy(store: StoreProcess, path: str) -> None:
    _, headers, _ = ask(store, path, X_Podlink_Token=TOKEN)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_word_that_is_there_twice_is_refused(store: StoreProcess) -> None:
    status, _, body = ask(store, "/graph?ns=a&ns=b", X_Podlink_Token=TOKEN, Accept="text/html")
    assert status == 400 and "ns is there twice" in body


def test_a_static_path_leads_to_listed_files_only(store: StoreProcess) -> None:
    for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/static/ORIGIN.md"):
        assert ask(store, path, X_Podlink_Token=TOKEN)[0] == 404


FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "﹦", "⁼", "﹢", "﹣", "﹫", "−")


@pytest.mark.attack_row(43)
@pytest.mark.parametrize("before", ["", " ", "\t", "\r", "\n", "\0", "\u200b", "\ufeff", "\xa0 "])
@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_is_a_formula_to_a_spreadsheet(formula: str, before: str) -> None:
    """By the characters of OWASP's "CSV Injection", alone or behind what a spreadsheet skips."""
    evil = f'{before}{formula}cmd|" /C calc"!A1'
    text = as_csv([{"a": evil, "b": [evil, evil], "c": f"x;{evil}", "d": f'x"; "{evil}'}], "abcd")
    # A comma or, in many locales, a semicolon ends a cell.
    for separator in (",", ";"):
        cells = [
            cell
            for row in csv.reader(io.StringIO(text.lstrip("\ufeff")), delimiter=separator)
            for cell in row
        ]
        assert formula in "".join(cells), "what was written is still there to be read"
        assert len(cells) == 8 or separator == ";"
        signs = (*FORMULAS, "\t", "\r", "\n", "\0")
        assert not [cell for cell in cells if cell.strip(' "')[:1] in signs]


def test_numbers_and_plain_names_stay_as_they_are() -> None:
    text = as_csv([{"a": 7, "b": "shop/web", "c": True, "d": None, "e": -1}], "abcde")
    assert text.splitlines()[1] == "7,shop/web,true,,-1"
