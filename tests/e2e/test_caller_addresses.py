"""Real programs that go by their caller's address: in the mesh they do what they do without podlink.

Everything runs twice, in the mesh and in the namespace that is not enrolled, and must come out alike.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh import Mesh, until
from tests.e2e.objects import MESH, PLAIN, Object, container, pod, service

WHERE = (PLAIN, MESH)
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
START_POSTGRES = f"""
set -e
{POSTGRES}/initdb --no-sync --no-instructions -A trust -U postgres -D /tmp/data >&2
cat > /tmp/data/pg_hba.conf <<X
local all all trust
host all postgres samehost trust
X
exec {POSTGRES}/postgres -D /tmp/data -k /tmp -c listen_addresses='*' -c fsync=off
"""
START_MARIADB = """
set -e
mkdir -p /tmp/my
mariadb-install-db --no-defaults --datadir=/tmp/my/data --skip-test-db --user=$(id -un) \
  --auth-root-authentication-method=normal >&2
exec mariadbd --no-defaults --datadir=/tmp/my/data --socket=/tmp/my/s --pid-file=/tmp/my/pid \
  --user=$(id -un) --max-connect-errors=3 --innodb-log-file-size=8M --innodb-buffer-pool-size=16M
"""
START_NGINX = """
mkdir -p /tmp/ng
cat > /tmp/ng/conf <<'X'
daemon off; pid /tmp/ng/pid; error_log stderr;
events {}
http {
  log_format caller 'caller $remote_addr';
  access_log /tmp/ng/log caller;
  client_body_temp_path /tmp/ng/b; proxy_temp_path /tmp/ng/p; fastcgi_temp_path /tmp/ng/f;
  uwsgi_temp_path /tmp/ng/u; scgi_temp_path /tmp/ng/s;
  server { listen 8080; listen [::]:8080; location / { return 204; } }
}
X
exec nginx -e stderr -c /tmp/ng/conf
"""
START_VSFTPD = """
mkdir -p /tmp/vs/root /tmp/vs/empty
echo 'brought by an active transfer' > /tmp/vs/root/file
chmod 555 /tmp/vs/root
cat > /tmp/vs/conf <<X
listen=YES
listen_port=2121
background=NO
anonymous_enable=YES
local_enable=NO
run_as_launching_user=YES
anon_root=/tmp/vs/root
secure_chroot_dir=/tmp/vs/empty
connect_from_port_20=NO
seccomp_sandbox=NO
pasv_enable=NO
X
exec vsftpd /tmp/vs/conf
"""
SENTINEL = """
cat > /tmp/s.conf <<X
port 26379
protected-mode no
dir /tmp
sentinel resolve-hostnames yes
sentinel monitor m st-redis-0 6379 1
sentinel down-after-milliseconds m 3000
sentinel failover-timeout m 8000
X
exec redis-server /tmp/s.conf --sentinel
"""
REDIS = ("redis-server", "--protected-mode", "no", "--save", "", "--dir", "/tmp")
NODES = tuple(f"node-{number}" for number in range(6))


def _sh(script: str, listens: int, **more: Any) -> Object:
    return container(["bash", "-c", script], listens=listens, **more)


def _made(where: str) -> list[Object]:
    """Apps that see many callers, and two callers."""
    probed = {"readinessProbe": {"tcpSocket": {"port": 3306}, "periodSeconds": 1}}
    return [
        pod("st-pg", _sh(START_POSTGRES, 5432), where=where),
        pod("st-maria", _sh(START_MARIADB, 3306, **probed), where=where),
        pod("st-web", _sh(START_NGINX, 8080), where=where),
        pod("st-ftp", _sh(START_VSFTPD, 2121), where=where),
        pod("st-good", where=where),
        pod("st-bad", where=where),
    ]


@pytest.fixture(scope="module", autouse=True)
def apps(mesh: Mesh) -> Iterator[None]:
    made = [one for where in WHERE for one in _made(where)]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


@pytest.fixture(params=WHERE)
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def said(mesh: Mesh, name: str, *argv: str) -> str:
    """What a command printed, whether it succeeded or not."""
    done = mesh.cluster.exec(name, argv)
    return (done.stdout + done.stderr).strip()


# --- rules by address -------------------------------------------------------------------------------


@pytest.mark.attack_row(54)
def test_postgresql_trusts_the_addresses_it_is_told_to_and_no_others(
    mesh: Mesh, where: str
) -> None:
    server, good = f"{where}/st-pg", mesh.ip(f"{where}/st-good")
    own = ("psql", "-h", "/tmp", "-U", "postgres", "-At", "-c")
    mesh.run(server, *own, "create role guest login")
    mesh.run(server, "sh", "-c", f"echo 'host all guest {good}/32 trust' >> /tmp/data/pg_hba.conf")
    mesh.run(server, *own, "select pg_reload_conf()")

    def ask(caller: str, user: str) -> str:
        words = ("psql", "-h", mesh.ip(server), "-U", user, "-d", "postgres", "-At", "-c")
        return said(mesh, f"{where}/{caller}", *words, "select host(inet_client_addr())")

    until(lambda: ask("st-good", "guest") == good, "the rule is in force")
    assert f'no pg_hba.conf entry for host "{mesh.ip(f"{where}/st-bad")}"' in ask("st-bad", "guest")
    # `samehost` is this pod alone: what calls itself, and no peer.
    assert f'no pg_hba.conf entry for host "{good}"' in ask("st-good", "postgres")
    assert ask("st-pg", "postgres") == mesh.ip(server)


JUNK = """
import socket
for _ in range(5):
    with socket.create_connection(("%s", 3306), 5) as s:
        s.recv(500)
        try:
            s.sendall(b"no handshake at all"); s.recv(500)
        except OSError:
            pass
"""


def test_mariadb_blocks_the_guilty_client_alone_and_grants_by_address(
    mesh: Mesh, where: str
) -> None:
    """Beside its probes, each of which counts as an error of whoever connects."""
    server = f"{where}/st-maria"
    good, bad = mesh.ip(f"{where}/st-good"), mesh.ip(f"{where}/st-bad")
    grants = "; ".join(f"create user '{n}'@'{ip}'" for n, ip in (("app", good), ("other", bad)))
    mesh.run(server, "mariadb", "--no-defaults", "-S", "/tmp/my/s", "-uroot", "-e", grants)

    def ask(caller: str, user: str) -> str:
        client = ("mariadb", "--no-defaults", "-h", mesh.ip(server), f"-u{user}", "-N", "-e")
        return said(mesh, f"{where}/{caller}", *client, "select current_user()")

    assert ask("st-good", "app") == f"app@{good}"
    assert ask("st-bad", "other") == f"other@{bad}"
    assert f"'app'@'{bad}'" in ask("st-bad", "app")
    mesh.run(f"{where}/st-bad", "python", "-c", JUNK % mesh.ip(server))
    assert f"Host '{bad}' is blocked because of many connection errors" in ask("st-bad", "other")
    assert ask("st-good", "app") == f"app@{good}"


@pytest.mark.parametrize("version", [4, 6])
def test_nginx_logs_who_called(mesh: Mesh, where: str, version: int) -> None:
    to = mesh.ip(f"{where}/st-web", version)
    url = f"http://[{to}]:8080/" if version == 6 else f"http://{to}:8080/"
    for caller in ("st-good", "st-bad"):
        name = f"{where}/{caller}"
        mesh.run(name, "curl", "-sf", "-g", url)
        line = f"caller {mesh.ip(name, version)}"
        until(lambda line=line: line in _lines(mesh, f"{where}/st-web"), line)


def _lines(mesh: Mesh, server: str) -> list[str]:
    return mesh.run(server, "cat", "/tmp/ng/log").splitlines()


# --- connections back -------------------------------------------------------------------------------


def test_active_ftp_brings_the_file(mesh: Mesh, where: str) -> None:
    script = f"open {mesh.ip(f'{where}/st-ftp')} 2121\nuser anonymous x\nget file /tmp/got\nbye\n"
    caller = f"{where}/st-good"
    talk = mesh.run(caller, "ftp", "-A", "-n", "-v", feed=script.encode())
    assert "226 Transfer complete" in talk, talk
    assert mesh.run(caller, "cat", "/tmp/got") == "brought by an active transfer\n"


def test_redis_sentinel_fails_over(mesh: Mesh) -> None:
    made = [one for where in WHERE for one in _sentinel(where)]
    mesh.apply(*made)
    try:
        for where in WHERE:
            until(
                _knows(mesh, where, "num-slaves", "1"), f"{where}: the sentinel knows the replica"
            )
        for where in WHERE:
            mesh.node("kill", "-STOP", str(mesh.pid(f"{where}/st-redis-0")))
        for where in WHERE:
            second = mesh.ip(f"{where}/st-redis-1")
            until(_knows(mesh, where, "ip", second), f"{where}: the replica is the master")
            role = mesh.run(f"{where}/st-redis-1", "redis-cli", "role").split()[0]
            assert role == "master"
    finally:
        mesh.delete(*made)


def _sentinel(where: str) -> list[Object]:
    replica = [*REDIS, "--replicaof", "st-redis-0", "6379"]
    return [
        service("st-redis-0", 6379, where=where, clusterIP="None"),
        pod("st-redis-0", container([*REDIS], listens=6379), where=where),
        pod("st-redis-1", container(replica, listens=6379), where=where),
        pod("st-sentinel", _sh(SENTINEL, 26379), where=where),
    ]


def _knows(mesh: Mesh, where: str, field: str, value: str) -> Callable[[], bool]:
    words = ("redis-cli", "-p", "26379", "sentinel", "master", "m")

    def ask() -> bool:
        lines = said(mesh, f"{where}/st-sentinel", *words).split("\n")
        return dict(zip(lines[::2], lines[1::2], strict=False)).get(field) == value

    return ask


def test_a_redis_cluster_of_six_forms_and_answers(mesh: Mesh, where: str) -> None:
    command = [*REDIS, "--cluster-enabled", "yes", "--cluster-node-timeout", "15000"]
    made = [pod(name, container(command, listens=6379), where=where) for name in NODES]
    mesh.apply(*made)
    try:
        ends = [f"{mesh.ip(f'{where}/{name}')}:6379" for name in NODES]
        create = ("redis-cli", "--cluster", "create", *ends, "--cluster-replicas", "1")
        told = mesh.run(f"{where}/st-good", *create, "--cluster-yes", timeout_s=60.0)
        assert "[OK] All 16384 slots covered." in told, told
        for name in NODES:
            until(lambda name=name: "cluster_state:ok" in _state(mesh, f"{where}/{name}"), name)
        client = ("redis-cli", "-c", "-h", mesh.ip(f"{where}/{NODES[0]}"))
        for number in range(12):
            assert said(mesh, f"{where}/st-good", *client, "set", f"k{number}", "v") == "OK"
        nodes = mesh.run(f"{where}/st-good", *client, "cluster", "nodes")
        assert {line.split()[1].split("@")[0] for line in nodes.splitlines()} == set(ends)
        assert "fail" not in nodes
    finally:
        mesh.delete(*made)


def _state(mesh: Mesh, name: str) -> str:
    return said(mesh, name, "redis-cli", "cluster", "info")
