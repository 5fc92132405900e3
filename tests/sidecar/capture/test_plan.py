"""The ruleset as text: golden, and true for every plan."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.ports import PortSet
from kit.settings import ConfigInvalid, Settings
from sidecar.capture.config import plan_from
from sidecar.capture.plan import CapturePlan, parse_subnets
from sidecar.source_address import prefixes4

GOLDEN = """\
table inet podlink
delete table inet podlink
table inet podlink {
  chain outbound {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp accept
    ip daddr 192.0.2.1 tcp dport 7 redirect to :24101
    ip6 daddr 2001:db8::1 tcp dport 7 redirect to :24101
    ip daddr 248.0.0.0/6 drop
    ip6 daddr 4000::/2 drop
    meta skuid 24100 meta skgid 24100 accept
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    tcp dport { 22, 9000-9010 } accept
    ip daddr { 10.9.0.0/16 } accept
    ip6 daddr { fd00:9::/32 } accept
    tcp dport 0-65535 redirect to :24101
  }
  chain inbound {
    type nat hook prerouting priority -100; policy accept;
    iifname "lo" accept
    fib daddr type != local accept
    ip daddr 248.0.0.0/6 drop
    ip6 daddr 4000::/2 drop
    tcp dport 24103 accept
    tcp dport { 8080 } accept
    tcp dport 0-65535 redirect to :24102
  }
  chain strays {
    type filter hook prerouting priority -150; policy accept;
    iifname "lo" accept
    ip saddr 248.0.0.0/6 drop
    ip6 saddr 4000::/2 drop
    tcp dport 24103 accept
    tcp dport { 8080 } accept
    meta l4proto tcp ct state invalid drop
  }
  chain shown4 {
@shown4  }
  chain shown6 {
    snat ip6 prefix to ip6 saddr map { 4000::/3 : 2000::/3, 7c00::/7 : fc00::/7 }
  }
  chain source {
    type nat hook postrouting priority 90; policy accept;
    oifname "lo" meta l4proto tcp meta skuid 24100 meta skgid 24100 ip saddr 248.0.0.0/6 jump shown4
    oifname "lo" meta l4proto tcp meta skuid 24100 meta skgid 24100 ip6 saddr 4000::/2 jump shown6
    ip saddr 248.0.0.0/6 drop
    ip6 saddr 4000::/2 drop
  }
}
"""


def test_the_whole_text_of_a_plan_with_everything() -> None:
    plan = CapturePlan(
        "uid",
        PortSet.parse("8080"),
        PortSet.parse("22,9000-9010"),
        parse_subnets("10.9.0.0/16, fd00:9::/32"),
    )
    shown4 = "".join(
        f"    ip dscp {dscp} snat ip prefix to ip saddr map {{ 248.0.0.0/6 : {real} }}\n"
        for dscp, real in prefixes4()
    )
    assert plan.ruleset() == GOLDEN.replace("@shown4", shown4)


def test_where_the_app_is_to_see_the_pods_own_address_nothing_speaks_of_stand_ins() -> None:
    text = CapturePlan(show_source=False).ruleset()
    assert not any(word in text for word in ("248.", "4000:", "snat", "postrouting"))


networks = st.ip_addresses().map(ipaddress.ip_network)
port_sets = st.lists(st.integers(1, 65535), max_size=4).map(
    lambda ports: PortSet.parse(",".join(map(str, ports)))
)
plans = st.builds(
    CapturePlan,
    st.sampled_from(["uid", "mark"]),
    port_sets,
    port_sets,
    st.lists(networks, max_size=4).map(tuple),
    st.booleans(),
)


@given(plans)
def test_every_plan_touches_our_table_only_and_ends_both_chains_with_a_redirect(
    plan: CapturePlan,
) -> None:
    lines = [line.strip() for line in plan.ruleset().splitlines()]
    assert lines[:3] == ["table inet podlink", "delete table inet podlink", "table inet podlink {"]
    assert not any("flush" in line for line in lines)
    assert [line for line in lines if line.startswith("tcp dport 0-65535")] == [
        "tcp dport 0-65535 redirect to :24101",
        "tcp dport 0-65535 redirect to :24102",
    ]
    ends = [n for n, line in enumerate(lines) if line.startswith("tcp dport 0-65535")]
    assert [lines[n + 1] for n in ends] == ["}", "}"]
    exempt = [line for line in lines if line.startswith(("meta skuid", "meta mark"))]
    assert exempt == [
        "meta skuid 24100 meta skgid 24100 accept"
        if plan.exempt_by == "uid"
        else "meta mark 0x24100 accept"
    ]


@given(plans)
def test_only_the_proxy_gets_another_source_and_what_has_none_is_dropped(
    plan: CapturePlan,
) -> None:
    lines = [line.strip() for line in plan.ruleset().splitlines()]
    jumps = [line for line in lines if "jump shown" in line]
    by = "meta skuid 24100 meta skgid 24100" if plan.exempt_by == "uid" else "meta mark 0x24100"
    assert len(jumps) == (2 if plan.show_source else 0)
    assert all(by in line and line.startswith('oifname "lo"') for line in jumps)
    if plan.show_source:
        assert lines[-4:] == ["ip saddr 248.0.0.0/6 drop", "ip6 saddr 4000::/2 drop", "}", "}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_EXEMPT_BY", "name"),
        ("PODLINK_SOURCE_ADDRESS", "node"),
        ("PODLINK_SKIP_INBOUND_PORTS", "http"),
        ("PODLINK_SKIP_OUTBOUND_PORTS", "80;accept"),
        ("PODLINK_SKIP_SUBNETS", "10.0.0.0/8 } accept; tcp dport { 1"),
        ("PODLINK_SKIP_SUBNETS", "10.0.0.1/8"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it_and_no_rule(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^{name}") as caught:
        plan_from(Settings({name: value}))
    assert "\n" not in str(caught.value)


def test_nothing_set_skips_nothing() -> None:
    assert plan_from(Settings({})) == CapturePlan()


@pytest.mark.attack_row(34)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("PODLINK_SKIP_OUTBOUND_PORTS", "1-8,10-65535"),
        ("PODLINK_SKIP_INBOUND_PORTS", "1-4000,5000-5096"),
        ("PODLINK_SKIP_SUBNETS", "0.0.0.0/1,128.0.0.0/1"),
        ("PODLINK_SKIP_SUBNETS", "::/15"),
        ("PODLINK_SKIP_SUBNETS", "11.0.0.0/8,12.0.0.1"),
    ],
)
def test_a_pod_made_by_hand_skips_no_more_than_an_annotation_may(name: str, said: str) -> None:
    """The guard looks at images and commands, not at what the environment says."""
    with pytest.raises(ConfigInvalid, match="skip"):
        plan_from(Settings({name: said}))
