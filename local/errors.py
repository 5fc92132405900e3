"""What can go wrong on one machine, and who is to blame. Each message is one line for a person."""


class LocalError(Exception):
    """Base of everything `podlink local` reports in one line; `reason` is a fixed slug."""

    reason = "local"


class Unusable(LocalError):
    """This machine lacks something; the message names it and what to install or allow."""

    reason = "machine_unusable"


class BadManifest(LocalError):
    """What the user gave is malformed; the message names the file and the field."""

    reason = "manifest_malformed"


class NotRunning(LocalError):
    """There is no cluster of that name."""

    reason = "cluster_not_running"


class AlreadyRunning(LocalError):
    reason = "cluster_already_running"


class StartFailed(LocalError):
    """The cluster ended before it was ready; the message is its last line."""

    reason = "cluster_start_failed"


class ApiError(LocalError):
    """The API server refused: its code, CamelCase reason and message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class TimedOut(LocalError):
    reason = "timed_out"
