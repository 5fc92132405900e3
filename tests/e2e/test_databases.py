"""psql and pgbench against PostgreSQL, redis-cli and redis-benchmark against Redis: all unchanged."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Mesh, identity, now
from tests.e2e.objects import account, container, pod, service

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
START_POSTGRES = """
set -e
{bin}/initdb --no-sync --no-instructions -A trust -U postgres -D /tmp/data >&2
echo 'host all all all trust' >> /tmp/data/pg_hba.conf
exec {bin}/postgres -D /tmp/data -k /tmp -c listen_addresses='*' -c fsync=off
"""
PSQL = ("psql", "-h", "db", "-U", "postgres", "-At", "-v", "ON_ERROR_STOP=1")


@pytest.fixture(scope="module", autouse=True)
def databases(mesh: Mesh) -> Iterator[None]:
    assert (POSTGRES / "postgres").exists(), "install PostgreSQL: apt-get install postgresql"
    redis = ["redis-server", "--port", "6379", "--bind", "*", "-::*", "--save", "", "--dir", "/tmp"]
    made = [
        account("db"),
        account("cache"),
        service("db", 5432),
        service("cache", 6379),
        pod(
            "db",
            container(["bash", "-c", START_POSTGRES.format(bin=POSTGRES)], listens=5432),
            serviceAccountName="db",
        ),
        pod(
            "cache",
            container([*redis, "--protected-mode", "no"], listens=6379),
            serviceAccountName="cache",
        ),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made[2:])


def test_psql_writes_and_reads_through_a_protected_link(mesh: Mesh) -> None:
    since = now()
    sql = (
        "create table t as select g as n, repeat('x', 1000) as pad from generate_series(1, 5000) g"
    )
    assert mesh.run("mesh/client", *PSQL, "-c", sql).strip() == "SELECT 5000"
    assert mesh.run("mesh/client", *PSQL, "-c", "select sum(n) from t").strip() == "12502500"
    whole = mesh.run("mesh/client", *PSQL, "-c", "select pad from t")
    assert whole == ("x" * 1000 + "\n") * 5000
    link = mesh.link(since, sides=2, source="mesh/client", destination="mesh/db")
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["destination"]["identity"] == identity("db")


def test_a_wrong_query_fails_with_the_servers_own_words(mesh: Mesh) -> None:
    done = mesh.cluster.exec("mesh/client", [*PSQL, "-c", "select * from nowhere"])
    assert done.returncode == 1
    assert 'relation "nowhere" does not exist' in done.stderr


def test_pgbench_runs_without_a_failed_transaction(mesh: Mesh) -> None:
    common = ("-h", "db", "-U", "postgres", "postgres")
    mesh.run("mesh/client", "pgbench", "-i", "-q", "-s", "1", *common)
    report = mesh.run("mesh/client", "pgbench", "-c", "8", "-j", "2", "-t", "50", *common)
    assert "number of transactions actually processed: 400/400" in report
    assert "number of failed transactions: 0 (0.000%)" in report


def test_pgbench_may_connect_anew_for_each_transaction(mesh: Mesh) -> None:
    common = ("-h", "db", "-U", "postgres", "postgres")
    mesh.run("mesh/client", "pgbench", "-i", "-q", "-s", "1", *common)
    report = mesh.run("mesh/client", "pgbench", "-C", "-S", "-c", "4", "-t", "25", *common)
    assert "number of transactions actually processed: 100/100" in report


def test_redis_cli_stores_and_reads_back(mesh: Mesh) -> None:
    since = now()
    value = b"v" * 200_000
    client = ("redis-cli", "-h", "cache")
    assert mesh.run("mesh/client", *client, "-x", "set", "k", feed=value).strip() == "OK"
    assert mesh.run("mesh/client", *client, "get", "k").strip() == value.decode()
    link = mesh.link(since, sides=2, source="mesh/client", destination="mesh/cache")
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["destination"]["identity"] == identity("cache")


@pytest.mark.parametrize("more", [(), ("-P", "16"), ("-k", "0")], ids=["plain", "pipeline", "new"])
def test_redis_benchmark_completes_every_request(mesh: Mesh, more: tuple[str, ...]) -> None:
    before = int(_info(mesh, "stats")["total_commands_processed"])
    count = 1000 if "-k" in more else 5000
    command = ("redis-benchmark", "-h", "cache", "-n", str(count), "-c", "50", "-t", "set,get")
    report = mesh.run("mesh/client", *command, "--csv", *more)
    assert [line.split(",")[0] for line in report.splitlines()[1:]] == ['"SET"', '"GET"']
    after = int(_info(mesh, "stats")["total_commands_processed"])
    assert after - before >= 2 * count


def _info(mesh: Mesh, section: str) -> dict[str, str]:
    text = mesh.run("mesh/client", "redis-cli", "-h", "cache", "info", section)
    return dict(line.split(":", 1) for line in text.split() if ":" in line)
