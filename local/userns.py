"""Which user ids the cluster's user namespace has, and how they are written.

Three cases: root maps every id it has to itself; an ordinary user with a range in /etc/subuid maps
itself to 0 and the range above it, through newuidmap; any other maps itself alone
(user_namespaces(7)).
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from local import permission
from local.errors import Unusable

_WANTED_RANGE = 65536

Range = tuple[int, int, int]
"""First id inside, first id outside, how many."""


@dataclass(frozen=True, slots=True)
class IdMaps:
    """What to write for a new user namespace. `single`: one id, so containers cannot differ."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]
    by_helper: bool = False

    @property
    def single(self) -> bool:
        return sum(count for _, _, count in self.uids) == 1

    def write(self, pid: int) -> "IdMaps":
        """Give the process `pid`, alone in its new namespace, these ids; returns what it was given:
        its own id alone where the helper refuses more. Raises Unusable.
        """
        if self.by_helper and not _helped("newuidmap", pid, self.uids):
            return alone().write(pid)
        try:
            if self.by_helper:
                if not _helped("newgidmap", pid, self.gids):
                    raise Unusable("newgidmap refused what newuidmap allowed: see /etc/subgid")
                return self
            if os.geteuid() != 0:
                Path(f"/proc/{pid}/setgroups").write_text("deny")
            Path(f"/proc/{pid}/uid_map").write_text(_lines(self.uids))
            Path(f"/proc/{pid}/gid_map").write_text(_lines(self.gids))
        except OSError as e:
            raise Unusable(permission.remedy(permission.observe())) from e
        return self


def _helped(helper: str, pid: int, ranges: tuple[Range, ...]) -> bool:
    """Have newuidmap or newgidmap write a map; False if it refuses."""
    numbers = [str(number) for line in ranges for number in line]
    done = subprocess.run([helper, str(pid), *numbers], capture_output=True, check=False)
    return done.returncode == 0


def alone() -> IdMaps:
    """This user's own id and group, as root, and no others."""
    return IdMaps(((0, os.getuid(), 1),), ((0, os.getgid(), 1),))


def plan() -> IdMaps:
    """The most that this user may map."""
    if os.geteuid() == 0:
        return IdMaps(_own_ranges("uid_map"), _own_ranges("gid_map"))
    uid, gid = os.getuid(), os.getgid()
    sub_uid, sub_gid = _sub_range("/etc/subuid", uid), _sub_range("/etc/subgid", uid)
    if sub_uid and sub_gid and shutil.which("newuidmap") and shutil.which("newgidmap"):
        return IdMaps(((0, uid, 1), (1, *sub_uid)), ((0, gid, 1), (1, *sub_gid)), by_helper=True)
    return alone()


def _own_ranges(name: str) -> tuple[Range, ...]:
    """Every id this process has, mapped to itself."""
    rows = [line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines()]
    return tuple((int(first), int(first), int(count)) for first, _, count in rows)


def _sub_range(path: str, uid: int) -> tuple[int, int] | None:
    """This user's first large range in /etc/subuid or /etc/subgid (subuid(5))."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        enough = count.isdigit() and int(count) >= _WANTED_RANGE
        if owner in (name, str(uid)) and first.isdigit() and enough:
            return int(first), _WANTED_RANGE
    return None


def _lines(ranges: tuple[Range, ...]) -> str:
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)
