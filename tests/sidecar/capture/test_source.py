"""An app sees its peer's address: the real rules and routes, in network namespaces made for it."""

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.contract import PROXY_MARK, PROXY_UID
from tests.sidecar.capture.test_apply import Pod
from tests.sidecar.capture.test_beside_others import OTHERS, load

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]
OWN = {4: "10.77.0.2", 6: "fd77::2"}
PEERS = (
    "10.244.3.9", "10.77.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.77", "100.64.3.4",
    "100.127.255.1", "8.8.8.8", "203.0.113.9", "1.2.3.4", "223.255.1.1", "240.10.1.1",
    "169.254.20.10", "fd77::9", "fc00::1", "2001:db8::5", "3fff:1:2:3:4:5:6:7",
)  # fmt: skip


@pytest.fixture
def pod() -> Iterator[Pod]:
    it = Pod(f"src{os.getpid()}")
    try:
        it.up()
        yield it
    finally:
        it.down()


_SHOW = textwrap.dedent("""
    # Listen as the app at each of the pod's addresses, then connect as the given user and say what the
    # app saw of each peer.
    import json, os, socket, sys
    from sidecar.sockets import start_connect
    from sidecar.source_address import stand_in
    uid, mark, wish, *peers = sys.argv[1:]
    apps = {}
    for ip in ("10.77.0.2", "fd77::2"):
        apps[":" in ip] = app = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        app.bind((ip, 0)); app.listen(64); app.settimeout(0.3)
    os.setgid(int(uid)); os.setuid(int(uid))
    seen, held = {}, []
    for peer in peers:
        app = apps[":" in peer]
        source = stand_in(peer)._replace(port=int(wish))
        try:
            sock = start_connect(*app.getsockname()[:2], int(mark), source)
            theirs, (ip, port, *_) = app.accept()
            sock.setblocking(True); theirs.sendall(b"?" * 200_000)
            got = len(sock.recv(200_000, socket.MSG_WAITALL)); sock.sendall(b"!")
            assert (got, theirs.recv(9)) == (200_000, b"!")
            seen.setdefault(peer, []).append([ip, port])
            held += [sock, theirs]
        except OSError as e:
            seen.setdefault(peer, []).append([type(e).__name__, 0])
    print(json.dumps(seen))
""")


def show(
    pod: Pod, *peers: str, uid: int = PROXY_UID, mark: int = 0, port: int = 0
) -> dict[str, list[tuple[str, int]]]:
    words = (sys.executable, "-c", _SHOW, str(uid), str(mark), str(port), *peers)
    done = pod.run(*words)
    assert done.returncode == 0, done.stderr
    return {peer: [(ip, at) for ip, at in all_] for peer, all_ in json.loads(done.stdout).items()}


def proven(pod: Pod, version: int, uid: int = PROXY_UID, mark: int = 0) -> str:
    """What the proxy's own test says: "" if the app would see its peer's address."""
    code = f"from sidecar.source_check import prove; print(prove('{OWN[version]}', {mark}))"
    who = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    done = pod.run(*who, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("rp_filter", ["0", "1"])
def test_the_app_sees_any_address_a_peer_can_have(pod: Pod, rp_filter: str) -> None:
    for interface in ("all", "default", "lo", "eth0"):
        pod.run("sysctl", "-q", "-w", f"net.ipv4.conf.{interface}.rp_filter={rp_filter}")
    assert pod.capture().returncode == 0
    assert {peer: seen[0][0] for peer, seen in show(pod, *PEERS).items()} == {p: p for p in PEERS}
    assert [proven(pod, version) for version in (4, 6)] == ["", ""]


def test_so_it_is_where_the_proxy_is_known_by_its_mark(pod: Pod) -> None:
    assert pod.capture(PODLINK_EXEMPT_BY="mark").returncode == 0
    seen = show(pod, *PEERS, uid=0, mark=PROXY_MARK)
    assert {peer: ips[0][0] for peer, ips in seen.items()} == {peer: peer for peer in PEERS}
    assert proven(pod, 4, uid=0, mark=PROXY_MARK) == ""
    assert proven(pod, 4) != "", "by UID alone it is nobody"


@pytest.mark.parametrize("others", OTHERS)
def test_so_it_is_beside_the_rules_of_others(pod: Pod, others: str, tmp_path: Path) -> None:
    load(pod, tmp_path, OTHERS[others])
    for _ in range(2):
        assert pod.capture().returncode == 0
        seen = show(pod, *PEERS)
        assert {peer: ips[0][0] for peer, ips in seen.items()} == {peer: peer for peer in PEERS}


def test_masquerading_everything_comes_too_late_to_hide_a_peer(pod: Pod, tmp_path: Path) -> None:
    greedy = "table inet x { chain c { type nat hook postrouting priority srcnat; masquerade; }; }"
    load(pod, tmp_path, greedy)
    assert pod.capture().returncode == 0
    assert show(pod, "10.244.3.9")["10.244.3.9"][0][0] == "10.244.3.9"


def test_a_rule_that_hides_peers_is_found_out_by_the_test(pod: Pod, tmp_path: Path) -> None:
    first = "table inet x { chain c { type nat hook postrouting priority 10; masquerade; }; }"
    load(pod, tmp_path, first)
    assert pod.capture().returncode == 0
    assert "is seen to be" in proven(pod, 4)


def test_the_peers_port_is_kept_and_a_taken_one_gives_way(pod: Pod) -> None:
    assert pod.capture().returncode == 0
    for peer in ("10.244.3.9", "fd77::9"):
        (first, second) = show(pod, peer, peer, port=40001)[peer]
        assert first == (peer, 40001)
        assert second[0] == peer and second[1] != 40001


def test_two_peers_may_have_the_same_port(pod: Pod) -> None:
    assert pod.capture().returncode == 0
    peers = ("10.244.3.9", "10.244.3.10", "172.16.3.9", "192.168.3.9")
    seen = show(pod, *peers, port=40001)
    assert seen == {peer: [(peer, 40001)] for peer in peers}


_INJECTED = textwrap.dedent("""
    # As pod: a captured connection of a peer, and the proxy's own to the app in the peer's name. Say
    # what sequence numbers the app's end is at, then what the app has read within a second.
    import json, os, socket, sys
    from sidecar.sockets import start_connect
    from sidecar.source_address import stand_in
    own, peer, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    proxy, app = (socket.create_server((own, port), family=family) for port in (24102, 8088))
    print("ready", flush=True)
    tunnel, (_, port, *_) = proxy.accept()
    os.setegid(uid); os.seteuid(uid)
    ours = start_connect(own, 8088, 0, stand_in(peer)._replace(port=port))
    os.seteuid(0); os.setegid(0)
    theirs, address = app.accept()
    assert address[:2] == (peer, port), address
    TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, OFF_WITHOUT_PROBE = 19, 20, 21, -1
    theirs.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    at = []
    for queue in (1, 2):  # what it has received, what it has sent
        theirs.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        at.append(theirs.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    theirs.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, OFF_WITHOUT_PROBE)
    print(json.dumps([stand_in(peer).ip, *at]), flush=True)
    sys.stdin.readline()
    theirs.settimeout(0.5)
    try:
        print(theirs.recv(99).decode(), flush=True)
    except TimeoutError:
        print("nothing", flush=True)
    ours.setblocking(True); ours.sendall(b"the peer's")
    print(theirs.recv(99).decode(), flush=True)
    tunnel.sendall(b"alive")
    sys.stdin.readline()
""")
_INJECT = textwrap.dedent("""
    # As somebody on the way: hold a connection to the app's port, then send one segment beside it.
    import json, socket, struct, sys
    from ipaddress import ip_address
    to, peer, as_stand_in = sys.argv[1], sys.argv[2], sys.argv[3] == "stand-in"
    held = socket.create_connection((to, 8088), source_address=(peer, 0))
    port = held.getsockname()[1]
    print("connected", flush=True)
    source, seq, ack = json.loads(sys.stdin.readline())
    source = source if as_stand_in else peer
    data = b"injected"
    def segment(checksum):
        return struct.pack("!HHIIBBHHH", port, 8088, seq, ack, 5 << 4, 0x18, 512, checksum, 0) + data
    pseudo = b"".join(ip_address(each).packed for each in (source, to))
    pseudo += struct.pack("!II", len(segment(0)), 6)
    total = sum(struct.unpack(f"!{len(pseudo + segment(0)) // 2}H", pseudo + segment(0)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    raw = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_RAW, 6)
    if as_stand_in:
        raw.setsockopt(*((41, 75) if ":" in to else (0, 19)), 1)  # IPV6_TRANSPARENT, IP_TRANSPARENT
    raw.bind((source, 0))
    raw.sendto(segment(~total & 0xFFFF), (to, 0))
    print("sent", flush=True)
    held.settimeout(5)
    print(held.recv(9).decode(), flush=True)
""")


@pytest.mark.attack_row(54)
@pytest.mark.parametrize("_time", range(4))  # half of all numbers are taken for old data
@pytest.mark.parametrize("source", ["peer", "stand-in"])
@pytest.mark.parametrize(("own", "peer"), [("10.77.0.2", "10.77.0.1"), ("fd77::2", "fd77::1")])
def test_no_segment_from_outside_gets_into_a_connection_to_the_app(
    pod: Pod, own: str, peer: str, source: str, _time: int
) -> None:
    """The app's end of a link has its peer's address and port, and what connection tracking calls
    invalid is not redirected: whoever guesses two numbers would put bytes into a link beside its tunnel.
    """
    assert pod.capture().returncode == 0
    with pod.talk(pod.name, _INJECTED, own, peer, str(PROXY_UID)) as app:
        assert app() == "ready"
        with pod.talk(pod.world, _INJECT, own, peer, source) as attacker:
            assert attacker() == "connected"
            assert attacker(app()) == "sent"
            assert app("sent") == "nothing"
            assert app() == "the peer's"
            assert attacker() == "alive", "its own connection is none the worse"


@pytest.mark.attack_row(54)
@pytest.mark.parametrize("uid", [0, 1000, PROXY_UID + 1])
def test_nobody_but_the_proxy_appears_as_somebody_else(pod: Pod, uid: int) -> None:
    """Not even where its connections are not captured; nor does the app see the stand-in."""
    done = pod.capture(PODLINK_SKIP_SUBNETS="10.77.0.2/32,fd77::2/128")
    assert done.returncode == 0, done.stderr
    for ips in show(pod, "10.244.3.9", "fd77::9", uid=uid).values():
        assert ips == [("TimeoutError", 0)]
    assert show(pod, "10.244.3.9")["10.244.3.9"][0][0] == "10.244.3.9", "the proxy does"


@pytest.mark.attack_row(54)
def test_nobody_reaches_a_stand_in_from_in_or_outside(pod: Pod) -> None:
    """The range is local: what is sent there would come back to the app itself."""
    assert pod.capture().returncode == 0
    for ip in ("248.0.0.1", "251.1.2.3", "4000::1", "7d44::9"):
        for uid in (0, PROXY_UID):
            assert pod.lands(ip, 80, uid=uid) == "TimeoutError", (ip, uid)
    server = "import socket,sys; s=socket.create_server(('',8080)); s.settimeout(1); s.accept()"
    reach = (
        "import socket,sys\n"
        "try: socket.create_connection((sys.argv[1], 8080), 0.5); print('reached')\n"
        "except OSError as e: print(type(e).__name__)"
    )
    pod.run("sh", "-c", f'{sys.executable} -c "{server}" >/dev/null 2>&1 &')
    for route in ("route add 248.0.0.0/6 via 10.77.0.2", "-6 route add 4000::/2 via fd77::2"):
        assert pod.in_world("ip", *route.split()).returncode == 0
    for ip in ("248.0.0.1", "4000::1"):
        assert pod.in_world(sys.executable, "-c", reach, ip).stdout.strip() == "TimeoutError"


def test_what_is_flushed_shows_nobody_as_trusted(pod: Pod) -> None:
    """Without the rules an app sees the stand-in, which is nobody's and never loopback; the proxy's
    test sees that, too."""
    assert pod.capture().returncode == 0
    assert pod.run("nft", "delete", "table", "inet", "podlink").returncode == 0
    assert show(pod, "10.244.3.9")["10.244.3.9"][0][0] == "250.244.3.9"
    assert "is seen to be 251.51.100.7's" not in proven(pod, 6)
    assert "is seen to be" in proven(pod, 4)


def test_twice_is_as_once_and_pod_takes_it_back(pod: Pod) -> None:
    def local() -> int:
        tables = [pod.run("ip", v, "route", "show", "table", "local").stdout for v in ("-4", "-6")]
        return tables[0].count("248.0.0.0/6") + tables[1].count("4000::/2")

    for _ in range(2):
        assert pod.capture().returncode == 0
        assert local() == 2
    for _ in range(2):
        assert pod.capture(PODLINK_SOURCE_ADDRESS="pod").returncode == 0
        assert local() == 0
        assert "snat" not in pod.tables()
    assert "cannot bind" in proven(pod, 4)


def test_where_the_addresses_are_in_use_they_are_left_alone(pod: Pod) -> None:
    pod.run("ip", "addr", "add", "250.1.1.2/24", "dev", "eth0")
    done = pod.capture()
    assert done.returncode == 0
    assert "250.1.1.0/24 is in use here" in done.stdout + done.stderr
    assert "snat" not in pod.tables()
    assert pod.lands("10.77.0.1", 80) == "captured 10.77.0.1 80"


def test_a_kernel_without_prefix_nat_captures_all_the_same(pod: Pod, tmp_path: Path) -> None:
    fake = tmp_path / "nft"  # as before Linux 5.8, where NFTA_NAT_FLAGS has no netmap
    fake.write_text(
        "#!/bin/sh\nrules=$(cat)\n"
        'case "$rules" in *prefix*) echo "Error: Operation not supported" >&2; exit 1;; esac\n'
        'echo "$rules" | /usr/sbin/nft "$@"\n'
    )
    fake.chmod(0o755)
    done = pod.capture(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "source address: the pod's own: nft refused" in done.stdout + done.stderr
    assert pod.lands("10.77.0.1", 80) == "captured 10.77.0.1 80"
    assert "cannot bind" in proven(pod, 4)


def test_a_pod_without_ipv6_shows_ipv4_peers(pod: Pod) -> None:
    pod.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    pod.run("sysctl", "-q", "-w", "net.ipv6.conf.lo.disable_ipv6=1")
    assert pod.capture().returncode == 0
    assert proven(pod, 4) == ""
