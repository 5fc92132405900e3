"""What an app is shown as its caller's address: only what is known to be the caller's own."""

import pytest

from sidecar.dataplane.sources import NOT_DIRECT, UNPROVEN, UNSUITABLE, Sources


def sources(*proven: int, wanted: bool = True) -> Sources:
    made = Sources(wanted, {"10.244.0.5", "fd44::5"})
    for version in proven:
        made.tested(version, "")
    return made


def test_a_callers_address_and_port_are_shown() -> None:
    assert sources(4).seen("10.244.3.9", 40001) == ("250.244.3.9", 0, 40001)
    assert sources(6).seen("fd44::9") == ("7d44::9", 0, 0)


@pytest.mark.attack_row(54)
@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "::1", "fe80::1", "224.0.0.1", "0.0.0.0", "248.1.2.3", "4000::1"]
)
def test_no_caller_is_shown_as_what_it_cannot_be(ip: str) -> None:
    made = sources(4, 6)
    assert made.seen(ip, 1) is None
    assert made.counts == {UNSUITABLE: 1}


@pytest.mark.attack_row(54)
def test_an_address_that_nobody_has_checked_is_not_shown() -> None:
    made = sources(4, 6)
    assert made.seen("10.244.3.9", 1, checked=False) is None
    assert made.counts == {NOT_DIRECT: 1}


def test_nothing_is_shown_of_an_ip_version_before_its_test_or_after_it_failed() -> None:
    made = sources(6)
    assert made.seen("10.244.3.9") is None
    assert made.seen("fd44::9") is not None
    made.tested(6, "the rules are gone")
    assert made.seen("fd44::9") is None
    assert (made.why_not, made.proven) == ({6: "the rules are gone"}, frozenset())
    assert made.counts == {UNPROVEN: 2}
    made.tested(6, "")
    assert made.seen("fd44::9") is not None and not made.why_not


@pytest.mark.parametrize("ip", ["10.244.0.5", "fd44::5"])
def test_the_pods_own_address_needs_nothing(ip: str) -> None:
    made = sources(4, 6)
    assert made.seen(ip) is None
    assert made.counts == {}


def test_a_pod_that_does_not_want_it_counts_nothing() -> None:
    made = sources(4, wanted=False)
    assert made.seen("10.244.3.9") is None
    assert made.counts == {}
