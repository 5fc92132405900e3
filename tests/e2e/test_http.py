"""curl against nginx, both in injected pods: neither knows of podlink."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh, identity, now
from tests.e2e.objects import account, config_map, container, pod, service

MIB = 1 << 20
SIZE = 100 * MIB
NGINX = """
daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  client_max_body_size 200m;
  server {
    listen 8080; listen [::]:8080;
    location = /hello { return 200 "hello from nginx $connection_requests\\n"; }
    location /files/ { root /tmp; dav_methods PUT; create_full_put_path on; dav_access user:rw; }
  }
}
"""


@pytest.fixture(scope="module")
def web(mesh: Mesh) -> Iterator[str]:
    command = ["nginx", "-e", "stderr", "-c", "/config/nginx.conf"]
    made = [
        account("web"),
        config_map("nginx", {"nginx.conf": NGINX}),
        service("web", {"port": 80, "targetPort": 8080, "appProtocol": "http"}),
        pod(
            "web",
            container(command, listens=8080, mounts={"config": "/config"}),
            serviceAccountName="web",
            volumes=[{"name": "config", "configMap": {"name": "nginx"}}],
        ),
    ]
    mesh.apply(*made)
    yield "mesh/web"
    mesh.delete(made[-1], made[-2])


def test_several_requests_on_one_connection_are_one_protected_link(mesh: Mesh, web: str) -> None:
    since = now()
    answer = mesh.run("mesh/client", "curl", "-sS", "-m", "20", *["http://web/hello"] * 5)
    assert answer.splitlines() == [f"hello from nginx {n}" for n in range(1, 6)]
    link = mesh.link(since, sides=2, source="mesh/client", destination=web)
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["source"]["identity"] == identity("client")
    assert link["destination"]["identity"] == identity("web")
    assert link["asked"]["service"] == "web.mesh"
    assert link["destination"]["port"] == 8080
    assert link["direct"] is True
    assert link["disagreements"] == []
    assert len(mesh.eventually_links(since, 1, destination=web)) == 1


@pytest.mark.attack_row(42)
def test_each_request_leaves_a_span_below_its_link_and_claims_nothing_more(
    mesh: Mesh, web: str
) -> None:
    since = now()
    claimed = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    call = ("curl", "-sS", "-m", "20", "-H", f"traceparent: {claimed}")
    mesh.run("mesh/client", *call, "http://web/hello?token=secret", "http://web/none")
    link = mesh.link(since, sides=2, source="mesh/client", destination=web)
    spans = mesh.trace(link["trace_id"])
    for direction, teller in (("outbound", "client"), ("inbound", "web")):
        mine = [s for s in spans if s["attributes"].get("podlink.direction") == direction]
        [side] = [span for span in mine if span["name"] == "link"]
        requests = [span for span in mine if span["name"] == "GET"]
        told = [
            (s["attributes"]["url.path"], s["attributes"]["http.response.status_code"])
            for s in requests
        ]
        assert told == [("/hello", 200), ("/none", 404)]
        for span in requests:
            assert span["parent_span_id"] == side["span_id"]
            assert span["attributes"]["podlink.source.identity"] == identity("client")
            assert span["sender"] == identity(teller)
            [claim] = span["links"]
            assert claim["trace_id"] == claimed.split("-")[1]
            assert claim["attributes"] == {"podlink.claimed": True}
    assert "secret" not in str(spans)


def test_each_link_leaves_a_line_in_the_proxys_access_log(mesh: Mesh, web: str) -> None:
    since = now()
    mesh.run("mesh/client", "curl", "-sS", "-m", "20", "http://web/hello")
    link = mesh.link(since, sides=2, source="mesh/client", destination=web)
    lines = mesh.cluster.logs(web, "podlink-proxy").splitlines()
    said = [json.loads(line) for line in lines if '"scope":"access"' in line]
    [line] = [one for one in said if one["trace_id"] == link["trace_id"]]
    assert (line["direction"], line["verdict"]) == ("inbound", "allowed")
    assert line["src.identity"] == identity("client")


def test_a_hundred_megabytes_arrive_whole_in_both_directions(mesh: Mesh, web: str) -> None:
    since = now()
    script = f"head -c {SIZE} /dev/urandom > /tmp/sent && sha256sum < /tmp/sent"
    sent = mesh.run("mesh/client", "bash", "-c", script)
    mesh.run("mesh/client", "curl", "-fsS", "-m", "60", "-T", "/tmp/sent", "http://web/files/big")
    assert mesh.run(web, "bash", "-c", "sha256sum < /tmp/files/big") == sent
    fetch = "rm /tmp/sent; curl -fsS -m 60 http://web/files/big | sha256sum"
    assert mesh.run("mesh/client", "bash", "-c", fetch) == sent
    for direction in ("bytes_sent", "bytes_received"):
        large = {direction: lambda size: size > SIZE}
        link = mesh.link(since, sides=2, destination=web, **large)
        assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    mesh.run(web, "rm", "/tmp/files/big")


def test_a_chunked_upload_of_unknown_length_arrives_whole(mesh: Mesh, web: str) -> None:
    body = b"podlink\n" * (3 * MIB // 8)
    command = ("curl", "-fsS", "-m", "60", "-v", "-T", "-", "http://web/files/chunked")
    done = mesh.cluster.exec("mesh/client", command, feed=body)
    assert done.returncode == 0, done.stderr
    assert "Transfer-Encoding: chunked" in done.stderr
    got = mesh.run(web, "sha256sum", "/tmp/files/chunked")
    assert got.split()[0] == hashlib.sha256(body).hexdigest()


def test_many_short_connections_reuse_a_tunnel(mesh: Mesh, web: str) -> None:
    since = now()
    command = "for i in $(seq 20); do curl -fsS -m 20 http://web/hello || exit 1; done"
    assert mesh.run("mesh/client", "bash", "-c", command) == "hello from nginx 1\n" * 20
    links = mesh.eventually_links(since, 20, sides=2, destination=web, security="mtls")
    assert len(links) == 20
    assert sum(link["pooled"] is True for link in links) >= 15
