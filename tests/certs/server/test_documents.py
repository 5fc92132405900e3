"""docs/metrics.md and docs/reasons.md agree with the CA, in both directions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from certs.authority.issue import AuthorityExpired, CertificateUnsound
from certs.server.limits import Limits
from certs.server.metrics import METRICS, render
from kit.clock import monotonic
from tests.certs.running_ca import RunningCa

ROOT = Path(__file__).resolve().parents[3]
ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.M)


def section(name: str) -> str:
    text = (ROOT / "docs" / name).read_text()
    return text.partition("## The CA\n")[2].partition("\n## ")[0]


async def test_every_metric_is_served_and_described(ca: RunningCa) -> None:
    rows = {
        name: (kind, labels, text)
        for name, kind, labels, text in ROW.findall(section("metrics.md"))
    }
    assert rows == {
        m.name: (m.kind, ", ".join(f"`{label}`" for label in m.labels) or "-", m.help)
        for m in METRICS
    }
    page = ca.server.metrics()
    assert set(re.findall(r"^# TYPE (\w+) ", page, re.M)) == rows.keys()


def test_a_label_cannot_break_out_of_its_line() -> None:
    page = render({"calls_refused_total": {'a"} 1\nx': 1.0}})
    assert page.splitlines()[-1] == 'podlink_ca_calls_refused_total{reason="a\\"} 1\\nx"} 1'


def reasons() -> Iterator[str]:
    yield from ("bug", "banned", AuthorityExpired.reason, CertificateUnsound.reason)
    for path in (ROOT / "certs" / "server").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            raises = (
                "TokenRefused",
                "CallerForbidden",
                "RequestRefused",
                "TooMany",
                "CannotAnswer",
            )
            if isinstance(node, ast.Call) and name in raises:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value)
    limits = Limits.usual(monotonic)
    rates = (limits.per_source, limits.bad_tokens, limits.in_all, limits.per_identity)
    for buckets in (*rates, limits.per_pod):
        yield buckets._reason
    for in_flight in (limits.unread, limits.in_flight, limits.identities_in_flight):
        yield in_flight._reason
        yield f"{in_flight._reason}_per_source"


def test_every_reason_of_a_refusal_is_in_the_table() -> None:
    assert {row[0] for row in ROW.findall(section("reasons.md"))} == set(reasons())
