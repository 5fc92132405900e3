"""The capture plan that the environment asks for, as the injector wrote it."""

from typing import Literal

from kit.contract import SOURCE_ADDRESSES
from kit.ports import PortSet
from kit.settings import ConfigInvalid, Settings
from sidecar.capture.plan import CapturePlan, bounded, parse_subnets


def plan_from(settings: Settings) -> CapturePlan:
    """Raises ConfigInvalid naming the setting."""
    by = settings.choice("PODLINK_EXEMPT_BY", "uid", frozenset({"uid", "mark"}))
    exempt_by: Literal["uid", "mark"] = "mark" if by == "mark" else "uid"
    try:
        subnets = parse_subnets(settings.text("PODLINK_SKIP_SUBNETS", " "))
    except ValueError as e:
        raise ConfigInvalid(f"PODLINK_SKIP_SUBNETS: {e}") from e
    plan = CapturePlan(
        exempt_by,
        ports_from(settings, "PODLINK_SKIP_INBOUND_PORTS"),
        ports_from(settings, "PODLINK_SKIP_OUTBOUND_PORTS"),
        subnets,
        settings.choice("PODLINK_SOURCE_ADDRESS", "peer", SOURCE_ADDRESSES) == "peer",
    )
    try:
        return bounded(plan)
    except ValueError as e:
        raise ConfigInvalid(f"PODLINK_SKIP_*: {e}") from e


def ports_from(settings: Settings, name: str) -> PortSet:
    """A set of ports such as `5432, 9000-9010`; raises ConfigInvalid naming the setting."""
    try:
        return PortSet.parse(settings.text(name, " "))
    except ValueError as e:
        raise ConfigInvalid(f"{name}: {e}") from e
