"""Calls an HTTP server and prints its answer, for machines without curl: `call URL`."""

import http.client
import sys
import urllib.error
import urllib.request

_WITHIN_S = 8.0


def main(url: str) -> int:
    """Status 0 if the server answered with success; what went wrong is one line."""
    try:
        with urllib.request.urlopen(url, timeout=_WITHIN_S) as answer:  # noqa: S310
            sys.stdout.write(answer.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as e:
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        print(getattr(reason, "strerror", None) or reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
