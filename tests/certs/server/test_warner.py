"""Warnings of ends that come near: roots at 60, 30 and 7 days, and pods that do not renew."""

import datetime as dt
from pathlib import Path

import pytest

from certs.records import Entry
from certs.server.warner import overdue, root_warning
from tests.certs.authority.test_keyring import Parent
from tests.certs.client.test_ca import until
from tests.certs.fake_kube import FakeKube
from tests.certs.running_ca import running_ca
from tests.certs.server.test_import import PATH, founded, secret

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
DAY, MINUTE = dt.timedelta(days=1), dt.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (61 * DAY, None),
        (60 * DAY, "within 60 days"),
        (31 * DAY, "within 60 days"),
        (30 * DAY, "within 30 days"),
        (7 * DAY, "within 7 days"),
        (MINUTE, "within 7 days"),
        (0 * DAY, "has ended"),
        (-DAY, "has ended"),
    ],
)
def test_a_root_is_warned_of_at_sixty_thirty_and_seven_days(
    left: dt.timedelta, says: str | None
) -> None:
    found = root_warning(NOW + left, NOW)
    assert (found is None) if says is None else (found is not None and says in found)


def test_only_pods_past_four_fifths_of_a_life_are_late() -> None:
    def entry(pod: str, age: dt.timedelta, issuer: str = "ab") -> Entry:
        issued = NOW - age
        return Entry(pod, pod, "id", "1f", issuer, "n", issued, issued + 60 * MINUTE)

    entries = [
        entry("shop/fresh", 30 * MINUTE),
        entry("shop/late", 50 * MINUTE),
        entry("shop/unknown", 50 * MINUTE, issuer=""),
    ]
    assert overdue(entries, NOW) == ["shop/late"]


async def test_the_end_of_a_root_is_told_as_an_event_once(tmp_path: Path) -> None:
    fake = FakeKube()
    fake.put(PATH, secret(Parent(ends=20 * DAY).intermediate(ends=20 * DAY)))
    await founded(fake)
    async with running_ca(tmp_path, fake, import_secret="mesh-signer") as ca:
        for _ in range(3):
            await ca.server._warner.look()

        def told() -> list[str]:
            return [e["message"] for e in fake.of_kind("events") if e["reason"] == "RootEndsSoon"]

        await until(lambda: len(told()) >= 2)
        said = told()
    assert sorted(m.split(" ends")[0] for m in said) == ["CN=corporate root", "CN=mesh signer"]
    assert all("within 30 days" in message for message in said)
