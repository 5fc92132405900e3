"""What listens on loopback only, by the kernel's own tables."""

import socket
from pathlib import Path

import pytest

from sidecar.listening import LoopbackListeners, on_loopback


def listener(ip: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    sock.bind((ip, 0))
    sock.listen()
    return sock


@pytest.mark.parametrize(("ip", "found"), [("127.0.0.1", True), ("0.0.0.0", False), ("::1", True)])
def test_a_port_that_is_listened_for_on_loopback_is_known(ip: str, found: bool) -> None:
    sock = listener(ip)
    port = sock.getsockname()[1]
    listening = LoopbackListeners()
    assert (port in listening()) is found
    sock.close()


def test_the_tables_are_read_once_a_second_whoever_asks(tmp_path: Path) -> None:
    now, table = [100.0], tmp_path / "tcp"
    row = "   0: 0100007F:{:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1"
    table.write_text("header\n" + row.format(8080))
    listening = LoopbackListeners([table, tmp_path / "none"], now=lambda: now[0])
    assert listening() == {8080}
    table.write_text("header\n" + row.format(9090))
    assert listening() == {8080}
    now[0] += 1.5
    assert listening() == {9090}


@pytest.mark.parametrize("line", ["", "x", "0: 0100007F:1F90 0:0 01", "0: 00000000:1F90 0:0 0A"])
def test_other_lines_of_the_table_say_nothing(line: str) -> None:
    assert not list(on_loopback(f"header\n{line}"))
