"""Why this process may not make the namespaces of a cluster, and what to do about it, in one line.

`remedy` is pure; `observe` reads what the kernel says. The standard library only: scripts/setup.sh asks
`python -m local.permission` before anything is installed.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_SETFCAP, _SYS_ADMIN = 31, 21


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides about namespaces, as far as the kernel tells it. None: it has no such setting."""

    root: bool
    capabilities: int = 0
    """The effective ones, bit by bit (capabilities(7))."""
    max_user_namespaces: int | None = None
    unprivileged_userns_clone: int | None = None
    """Debian's own switch."""
    apparmor_restrict: int | None = None
    """kernel.apparmor_restrict_unprivileged_userns, Ubuntu's since 23.10."""
    masked_proc: bool = False
    """Something is mounted over a part of /proc, so that no namespace may have a /proc of its own."""
    container: bool = False


def remedy(machine: Machine) -> str:
    """The likeliest reason and its remedy, the reasons that are certain first."""
    if machine.max_user_namespaces == 0 and not machine.root:
        return (
            "user namespaces are switched off on this machine: "
            "sudo sysctl -w user.max_user_namespaces=10000, or run it as root"
        )
    if machine.unprivileged_userns_clone == 0 and not machine.root:
        return (
            "ordinary users may not make namespaces on this machine: "
            "sudo sysctl -w kernel.unprivileged_userns_clone=1, or run it as root"
        )
    if machine.apparmor_restrict and not machine.root:
        return (
            "AppArmor keeps ordinary users from making namespaces on this machine: "
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run it as root"
        )
    if machine.root and not machine.capabilities >> _SETFCAP & 1 and not _is_admin(machine):
        return (
            "root has neither CAP_SYS_ADMIN nor CAP_SETFCAP here and may make no namespaces: "
            + ("start the container with --privileged" if machine.container else "give it them")
            + ", or run it as an ordinary user"
        )
    if machine.masked_proc:
        return (
            "parts of /proc are hidden here, so that no namespace may have its own: start the "
            "container with --security-opt systempaths=unconfined, or with --privileged"
        )
    if machine.container:
        return (
            "this container may make no namespaces: start it with --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined, or with --privileged"
        )
    return "this machine lets this process make no namespaces: " + (
        "look for a seccomp filter or a security module that forbids unshare(2)"
        if machine.root
        else "run it as root"
    )


def _is_admin(machine: Machine) -> bool:
    return bool(machine.capabilities >> _SYS_ADMIN & 1)


def observe() -> Machine:
    """What this machine says of itself."""
    mounts = _text("/proc/self/mountinfo").splitlines()
    points = [line.split()[4] for line in mounts if len(line.split()) > 4]
    return Machine(
        root=os.geteuid() == 0,
        capabilities=_effective(_text("/proc/self/status")),
        max_user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        unprivileged_userns_clone=_number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restrict=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        masked_proc=any(
            p.startswith("/proc/") and not p.startswith("/proc/sys/fs/binfmt_misc") for p in points
        ),
        container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
    )


def _effective(status: str) -> int:
    found = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    return int(found[0], 16) if found else 0


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    print(remedy(observe()))  # noqa: T201
