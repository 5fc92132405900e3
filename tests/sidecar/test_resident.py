"""What was needed for the start alone is let go of, and all of it still works."""

import subprocess
import sys

from sidecar.resident import unchanged_files

SMAPS = """\
00400000-00401000 r-xp 00000000 fd:00 7      /usr/bin/a code
Rss:                  12 kB
Anonymous:             0 kB
00401000-00402000 r--p 00001000 fd:00 7      /usr/lib/relocated.so
Rss:                   4 kB
Anonymous:             4 kB
00402000-00403000 rw-p 00002000 fd:00 7      /usr/lib/data.so
Rss:                   4 kB
Anonymous:             0 kB
00403000-00404000 r-xp 00000000 00:00 0      [vdso]
Rss:                   4 kB
Anonymous:             0 kB
00404000-00406000 r--p 00001000 fd:00 7      /usr/lib/tables.so
Rss:                   8 kB
Anonymous:             0 kB
00406000-00407000 r--p 00001000 fd:00 7      /usr/lib/absent.so
Rss:                   0 kB
Anonymous:             0 kB
00407000-00408000 r-xp 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
"""
AFTER = """
import resource, ssl, socket, sys
from pathlib import Path
import sidecar.app
from sidecar.resident import let_go_of_the_start

def resident():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(rollup.split("Rss:")[1].split()[0])

before = resident()
let_go_of_the_start()
assert resident() < before * 0.75, (before, resident())
# Code and tables of every library that was let go of are there when they are needed.
import cryptography.hazmat.primitives.asymmetric.ec as ec
from cryptography.hazmat.primitives import hashes
key = ec.generate_private_key(ec.SECP256R1())
key.public_key().verify(key.sign(b"a", ec.ECDSA(hashes.SHA256())), b"a", ec.ECDSA(hashes.SHA256()))
ssl.create_default_context()
import grpc
grpc.insecure_channel("127.0.0.1:1").close()
from proto import registry_pb2
assert registry_pb2.PodSettings.FromString(registry_pb2.PodSettings(zone="a").SerializeToString())
"""


def test_only_files_that_nobody_changed_are_let_go_of() -> None:
    assert list(unchanged_files(SMAPS)) == [(0x400000, 0x1000, 12), (0x404000, 0x2000, 8)]


def test_a_sidecar_that_has_let_go_of_its_start_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", AFTER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
