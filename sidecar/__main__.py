"""`python -m sidecar`: the container `podlink-proxy`."""

import asyncio
import gc
import logging
import resource
import sys

from kit.logs import start_logging
from kit.settings import Settings
from kit.tasks import TaskDied
from kit.undumpable import forbid_dumps
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from sidecar.dataplane.loop.poller import DataLoop
from sidecar.telemetry.config import TelemetryConfig

_MAX_DESCRIPTORS = 1 << 20
_log = logging.getLogger("podlink.sidecar")


def main() -> None:
    forbid_dumps()
    settings = Settings()
    config = SidecarConfig.from_settings(settings)
    telemetry = TelemetryConfig.from_settings(settings)
    start_logging(config.log_level)
    _raise_descriptor_limit()
    # What is imported lives as long as the process: keep the collector from walking it each time.
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=DataLoop) as runner:
            runner.run(_run(config, telemetry))
    except OSError as e:
        _log.error("cannot start", extra={"error": str(e)})
        sys.exit(1)
    except TaskDied as e:
        _log.error("stopping: the proxy cannot go on", extra={"error": str(e)})
        sys.exit(1)


def _raise_descriptor_limit() -> None:
    """Every link takes two descriptors, and a container's soft limit may be 1,024: take what the
    hard limit gives (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(config: SidecarConfig, telemetry: TelemetryConfig) -> None:
    source = config.svid_source.open(
        config.identity,
        ca_address=config.ca_address,
        token_path=config.token_path,
        bundle_path=config.bundle_path,
    )
    sidecar = Sidecar(asyncio.get_running_loop(), config, telemetry, source)
    await sidecar.run_until_signalled()


if __name__ == "__main__":
    main()
