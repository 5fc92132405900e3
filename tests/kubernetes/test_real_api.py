"""The fixture's own logic, with two small programs in the place of the real ones."""

import subprocess
from pathlib import Path

import pytest

from tests.kubernetes.real_api import (
    AssetsUnusable,
    Plan,
    find_assets,
    real_api,
)

SERVES = """#!/usr/bin/env python3
import http.server, ssl, subprocess, sys, pathlib
said = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
certs = pathlib.Path(said["cert-dir"]); certs.mkdir()
subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
    "-nodes", "-keyout", certs / "k", "-out", certs / "c", "-subj", "/CN=x"], check=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404); self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(said["secure-port"])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(certs / "c", certs / "k")
server.socket = context.wrap_socket(server.socket, server_side=True)
pathlib.Path(said["token-auth-file"] + ".seen").write_text("yes")
server.serve_forever()
"""


def assets(folder: Path, apiserver: str) -> Path:
    folder.mkdir()
    for name, text in (("etcd", "#!/bin/sh\nexec sleep 60\n"), ("kube-apiserver", apiserver)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def test_no_variable_is_no_folder_and_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    assert find_assets({}) is None
    with pytest.raises(AssetsUnusable, match="there is no etcd in it"):
        find_assets({"KUBEBUILDER_ASSETS": str(tmp_path)})
    found = assets(tmp_path / "bin", SERVES)
    assert find_assets({"KUBEBUILDER_ASSETS": str(found)}) == found


def test_both_programs_run_until_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with real_api(assets(tmp_path / "bin", SERVES), folder) as api:
        assert api.url.startswith("https://127.0.0.1:")
        assert (folder / "tokens.csv").read_text().startswith(f"{api.token},admin,")
        assert (folder / "tokens.csv.seen").exists()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert left.stdout == ""


def test_a_program_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    broken = assets(tmp_path / "bin", "#!/bin/sh\necho unknown flag >&2\nexit 3\n")
    with pytest.raises(AssetsUnusable, match="status 3: unknown flag"), real_api(broken, folder):
        pass


def test_nothing_listens_beyond_loopback() -> None:
    plan = Plan(Path("/d"), Path("/a"), 1, 2, 3)
    assert all("127.0.0.1" in word for word in plan.etcd if "://" in word)
    assert "--bind-address=127.0.0.1" in plan.apiserver
    assert "--etcd-servers=http://127.0.0.1:1" in plan.apiserver
