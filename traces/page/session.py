"""Who may look: whoever shows the token in a header, or holds the cookie that a login with it gave.

The cookie says until when it is good, under a MAC whose key is the token: nothing is kept here, a
new token ends every session, and the cookie does not give the token away. Pure: the clock is an
argument.
"""

import hashlib
import hmac
import re
from typing import Final

COOKIE: Final = "podlink_session"
LIFETIME_S: Final = 12 * 3600
_FORM = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")


def session_cookie(token: bytes, now_s: float) -> str:
    """The value of a cookie that is good for LIFETIME_S from now."""
    until = str(int(now_s) + LIFETIME_S)
    return f"{until}.{_mac(token, until)}"


def is_session(raw_cookie: str, token: bytes, now_s: float) -> bool:
    """Whether this value was made by `session_cookie` with this token, and is still good."""
    found = _FORM.fullmatch(raw_cookie)
    if found is None or not token:
        return False
    return hmac.compare_digest(_mac(token, found[1]), found[2]) and now_s < int(found[1])


def is_token(raw_said: str, token: bytes) -> bool:
    """Fails closed: an empty token is nobody's."""
    try:
        said = raw_said.strip().encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, which no byte stands for
        return False
    return bool(token) and hmac.compare_digest(token, said)


def _mac(token: bytes, until: str) -> str:
    return hmac.new(token, b"podlink review session " + until.encode(), hashlib.sha256).hexdigest()
