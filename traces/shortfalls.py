"""What a report does not prove, in words that stand before its figures: a signature holds for an empty
record as well as for a full one."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

_SHORT_S = 60
"""Roll-ups are by the minute: a record that begins this much after the time asked is complete."""

Json = Mapping[str, Any]


def ago(seconds: float) -> str:
    """A length of time in its largest unit: `41 min`, `3 d`."""
    left = max(0, int(seconds))
    for unit, one in (("d", 86400), ("h", 3600), ("min", 60)):
        if left >= 2 * one:
            return f"{left // one} {unit}"
    return f"{left} s"


def counted(count: int, thing: str) -> str:
    """`1 edge`, `2 edges`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def shortfalls(body: Json) -> list[str]:
    """Everything for which a reader must not take the figures as they stand; the worst first. Empty
    if there is nothing of the kind. Reads reports of older versions too."""
    record = body["record"]
    chains = record["chains"]
    judged = chains.get("judged") or {}
    before = chains.get("before") or {}
    found = [_not_covered(body), _unproven(chains, judged)]
    if before.get("records"):
        found.append(
            f"{counted(before['records'], 'record')} before the record begins: "
            f"{counted(before['chains'], 'chain')} had begun before the store held anything of "
            "them, and what they told until then is lost"
        )
    if chains["missing"]:
        found.append(f"{counted(chains['missing'], 'record')} missing inside of chains")
    if judged.get("altered"):
        found.append(f"{counted(judged['altered'], 'record')} not as written")
    found += _absent(chains)
    found += _other_sidecars((body.get("cluster") or {}).get("other_sidecars") or {})
    return [one for one in found if one]


def _absent(chains: Json) -> list[str]:
    """What is not there at all, or ends without a word. Reports of older versions say nothing of it."""
    unchained = (chains.get("unchained") or {}).get("links", 0)
    silent = (chains.get("silent") or {}).get("count", 0)
    unended = chains.get("unended") or {}
    found = []
    if unchained:
        found.append(f"{counted(unchained, 'link')} in no chain: nothing proves them")
    if silent:
        found.append(f"{counted(silent, 'pod')} got a certificate and left no chain")
    if unended.get("count"):
        found.append(
            f"{counted(unended['count'], 'chain')} ended without a last checkpoint, and "
            f"{counted(unended['records'], 'record')} after the last signature"
        )
    return found


def _other_sidecars(said: Json) -> list[str]:
    """A record is the word of proxies: one that podlink did not make may say anything of its pod."""
    if said.get("unread"):
        return [f"nobody compared the sidecars with what the injector makes: {said['unread']}"]
    if said.get("count"):
        return [f"{counted(said['count'], 'pod')} with a sidecar other than the injector makes"]
    return []


def _not_covered(body: Json) -> str:
    asked = _moment(body["to"]) - _moment(body["from"])
    if not body["record"]["recorded_since"]:
        return f"the record covers nothing of {ago(asked)}: it holds no link"
    began = _moment(body["record"]["recorded_since"])
    if began - _moment(body["from"]) <= _SHORT_S:
        return ""
    covered = ago(max(0, _moment(body["to"]) - began))
    return (
        f"the record covers {covered} of {ago(asked)}: it begins at "
        f"{body['record']['recorded_since']}, and says nothing of before"
    )


def _unproven(chains: Json, judged: Json) -> str:
    """A few of a living mesh always wait for the next checkpoint; all of them are another matter."""
    if not judged:
        return "no record was judged by its signature" if chains["records"] else ""
    if judged["unproven"] and not judged["proven"]:
        return f"{counted(judged['unproven'], 'record')} unproven, and none proven by a signature"
    return ""


def cut_in_words(chains: Json) -> str:
    """What is no shortfall, but explains numbers that begin late; empty if nothing does."""
    cut = chains.get("cut") or {}
    if not cut.get("records"):
        return ""
    return (
        f"of {counted(cut['chains'], 'chain')} {counted(cut['records'], 'earlier record')} "
        "are kept no more: deleted by age or size"
    )


def _moment(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()
