"""Where a link goes, over every kind of destination."""

from hypothesis import given
from hypothesis import strategies as st

from certs.trust.identity import WorkloadIdentity
from kit.ports import PortSet
from sidecar.dataplane.routing.choose import Choice
from sidecar.dataplane.routing.route import Plaintext, Refused, Tunnelled, to_address, to_endpoint
from sidecar.directory import EXTERNAL, Endpoint, External, Own, Workload

API = WorkloadIdentity("cluster.local", "shop", "api")
OWN = Own("shop", "web", "uid", frozenset({"10.0.0.1"}))
ports = st.integers(1, 65535)
skips = st.lists(st.sampled_from([80, 443, 5432]), max_size=2).map(
    lambda found: PortSet.parse(",".join(map(str, found)))
)
pods = st.builds(
    Workload,
    st.just("uid"),
    st.just("shop"),
    st.just("api-0"),
    st.one_of(st.none(), st.just(API)),
    st.just(("10.0.0.7",)),
    tunnel_only=st.booleans(),
    host_network=st.booleans(),
    skip_inbound=skips,
)
anywhere = st.one_of(st.just(EXTERNAL), pods)


@given(anywhere, st.one_of(ports, st.sampled_from([80, 443, 5432])), st.booleans())
def test_a_port_of_a_meshed_pod_gets_a_tunnel_or_is_one_its_capture_leaves_out(
    found: Workload | External, port: int, allow_external: bool
) -> None:
    route = to_address(found, "10.0.0.7", port, allow_external=allow_external)
    meshed = isinstance(found, Workload) and found.identity is not None
    if isinstance(found, Workload) and found.identity and port not in found.skip_inbound:
        assert isinstance(route, Tunnelled)
        assert route.pod is found
    elif meshed:
        assert isinstance(route, Plaintext)
        assert route.reason == "skip_port"
    elif allow_external:
        assert isinstance(route, Plaintext)
        on_node = isinstance(found, Workload) and found.host_network
        outside = "external" if isinstance(found, External) else "unmeshed_peer"
        assert route.reason == ("host_network" if on_node else outside)
    else:
        assert isinstance(route, Refused)
    assert route[:2] == ("10.0.0.7", port)


@given(st.one_of(st.none(), pods), st.sampled_from(["10.0.0.1", "10.0.0.7"]), st.booleans())
def test_an_endpoint_is_judged_as_its_address_would_be_and_our_own_stays_at_home(
    pod: Workload | None, ip: str, allow_external: bool
) -> None:
    chosen = Choice(Endpoint(ip, {80: 8080}, pod), 8080, "least-open")
    route = to_endpoint(chosen, OWN, allow_external=allow_external)
    if ip in OWN.ips:
        assert isinstance(route, Plaintext)
        assert (route.security, route.reason, route.pod) == ("self", "self", "shop/web")
    else:
        found = pod or EXTERNAL
        assert route == to_address(
            found, ip, 8080, allow_external=allow_external, choice="least-open"
        ) or isinstance(route, Refused)
        assert route.choice == "least-open"
