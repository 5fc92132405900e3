"""The forms that values of annotations may have, each said twice: as Python reads it and as CEL. Pure.

The injector reads with the first, the guard in the API server judges with the second; both stand in one
class, and a property test holds them to the same answer for any text. Texts are passed on as they were
written, but for spaces around items: what a guard cannot spell out anew it could not compare.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from kit import contract, skipped

MAX_VALUE = 4096
MAX_ITEMS = 64
_MAX_GRACE_S = 3600
_MAX_WORKERS = 16

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"({_LABEL}\.){{1,2}}{_LABEL}"
_PORT_RANGE = r"[0-9]{1,5}(-[0-9]{1,5})?"
_UPSTREAM = rf"[0-9]{{1,5}}=({_HOST}):[0-9]{{1,5}}"
_DURATION = r"[0-9]{1,5}[sm]"
_WORKERS = r"[1-9][0-9]?"
_CPU = r"([0-9]{1,6}(\.[0-9]{1,3})?|[0-9]{1,9}m)"
_MEMORY = r"([0-9]{1,15}|[0-9]{1,9}(k|M|G|Ki|Mi|Gi))"
_NOTHING = r"[0.]*[a-zA-Z]*"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}(/([1-9]?[0-9]))?"
_GROUP = r"[0-9a-fA-F]{1,4}"
_GROUPS = rf"({_GROUP}(:{_GROUP}){{0,6}})?"
_IPV6 = rf"({_GROUP}(:{_GROUP}){{7}}|{_GROUPS}::{_GROUPS})(/([1-9]?[0-9]|1[0-9][0-9]))?"
_BITS = {4: 32, 6: 128}
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_DECIMAL_UNITS = ("", "k", "M", "G", "T", "P")
_BINARY_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


@dataclass(frozen=True, slots=True)
class Kind:
    """`check` raises ValueError for a text that has not the form; `cel` makes an expression of the name
    of a text that says whether it has. Both see the text without spaces around it and its items.
    """

    words: str
    """The form, for whoever wrote something else."""
    check: Callable[[str], None]
    cel: Callable[[str], str]
    is_list: bool = False
    """Items between commas."""
    may_be_empty: bool = False

    def normal(self, raw: str) -> str:
        """The text without what means nothing."""
        if not self.is_list:
            return raw.strip()
        return ",".join(item.strip() for item in raw.split(","))

    def read(self, raw: str) -> str:
        """The text as it goes into the pod. Raises ValueError, with what is wrong if that helps."""
        if len(raw) > MAX_VALUE or not re.fullmatch(r"[ -~]*", raw):
            raise ValueError
        text = self.normal(raw)
        if text or not self.may_be_empty:
            self.check(text)
        return text

    def cel_normal(self, raw: str) -> str:
        """CEL for `normal` of the text that the expression `raw` is."""
        if not self.is_list:
            return f"{raw}.trim()"
        return f"{raw}.split(',').map(i, i.trim()).join(',')"

    def cel_read(self, raw: str) -> str:
        """CEL that says whether `read` would take the text that the expression `raw` is."""
        fits = self.cel("v")
        if self.may_be_empty:
            fits = f"v == '' || ({fits})"
        return (
            f"{raw}.size() <= {MAX_VALUE} && {matches(raw, '[ -~]*')}"
            f" && [{self.cel_normal(raw)}].all(v, {fits})"
        )


def quoted(text: str) -> str:
    """A text as a CEL literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def matches(subject: str, pattern: str) -> str:
    """CEL that says whether the whole of a text has the form."""
    return f"{subject}.matches({quoted(f'^({pattern})$')})"


def listed(texts: Sequence[str]) -> str:
    """A list of texts as a CEL literal."""
    return "[" + ", ".join(quoted(one) for one in texts) + "]"


def _items(text: str) -> list[str]:
    items = text.split(",")
    if len(items) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")
    return items


def _full(pattern: str, text: str) -> None:
    if re.fullmatch(pattern, text, re.ASCII) is None:
        raise ValueError


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    if port in contract.OWN_PORTS:
        raise ValueError(f"{port} is podlink's own")
    return port


def _check_ports(text: str) -> None:
    covered = 0
    for item in _items(text):
        _full(_PORT_RANGE, item)
        low, high = _port(item.partition("-")[0]), _port(item.rpartition("-")[2])
        if high < low:
            raise ValueError(f"{item} runs backwards")
        if any(low <= own <= high for own in contract.OWN_PORTS):
            raise ValueError(f"{item} holds podlink's own ports")
        covered += high - low + 1
    if covered > contract.MAX_SKIPPED_PORTS:
        raise ValueError(f"{covered} ports are more than {contract.MAX_SKIPPED_PORTS}")


def _cel_ports(text: str) -> str:
    own = " && ".join(f"!(l <= {p} && {p} <= h)" for p in sorted(contract.OWN_PORTS))
    ends = "int(i.split('-')[0])", "int(i.split('-')[i.split('-').size() - 1])"
    return (
        f"[{text}.split(',')].all(xs, xs.size() <= {MAX_ITEMS}"
        f" && xs.all(i, {matches('i', _PORT_RANGE)}"
        f" && [{ends[0]}].all(l, [{ends[1]}].all(h, 1 <= l && l <= h && h <= 65535 && {own})))"
        f" && xs.map(i, {ends[1]} - {ends[0]} + 1).sum() <= {contract.MAX_SKIPPED_PORTS})"
    )


def _check_http_ports(text: str) -> None:
    if text != contract.NO_HTTP_PORTS:
        _check_ports(text)


def _cel_http_ports(text: str) -> str:
    return f"{text} == {quoted(contract.NO_HTTP_PORTS)} || {_cel_ports(text)}"


def _check_subnets(text: str) -> None:
    networks = []
    for item in _items(text):
        _full(_IPV6 if ":" in item else _IPV4, item)
        networks.append(ip_network(item))  # strict: host bits must be zero
    if why := skipped.too_much(networks):
        raise ValueError(why)


def _cel_subnets(text: str) -> str:
    powers = "[" + ", ".join(str(2**n) for n in range(33)) + "]"

    def prefix(version: int) -> str:
        least, most = contract.SHORTEST_SKIPPED_PREFIX[version], _BITS[version]
        size = f"(i.contains('/') ? int(i.split('/')[1]) : {most})"
        return f"[{size}].all(p, {least} <= p && p <= {most} && "

    number = "int(b[0]) * 16777216 + int(b[1]) * 65536 + int(b[2]) * 256 + int(b[3])"
    v4 = (
        f"({matches('i', _IPV4)} && {prefix(4)}[i.split('/')[0].split('.')].all(b, "
        f"({number}) % {powers}[32 - p] == 0)))"
    )
    # The last four characters of three zeros and the group.
    digit = "'0123456789abcdef'.indexOf(f.substring(f.size() - {0}, f.size() - {1}))"
    value = " + ".join(f"{digit.format(place + 1, place)} * {16**place}" for place in range(4))
    group = (
        "['000' + (n < a.size() ? a[n] : n >= 8 - z.size() ? z[n - 8 + z.size()] : '0')]"
        ".map(g, g.lowerAscii()).all(f, 16 * (n + 1) <= p || "
        f"(16 * n >= p ? f.matches('^0+$') : ({value}) % {powers}[16 * (n + 1) - p] == 0))"
    )
    v6 = (
        f"({matches('i', _IPV6)} && {prefix(6)}[i.split('/')[0].split('::')].all(s, "
        "[s[0].split(':').filter(x, x != '')].all(a, "
        "[s.map(x, x.split(':').filter(y, y != ''))[s.size() - 1].filter(y, s.size() == 2)].all(z, "
        "(s.size() == 1 ? a.size() == 8 : a.size() + z.size() <= 7)"
        f" && [0, 1, 2, 3, 4, 5, 6, 7].all(n, {group}))))))"
    )
    return (
        f"[{text}.split(',')].all(xs, xs.size() <= {MAX_ITEMS}"
        f" && xs.all(i, i.contains(':') ? {v6} : {v4})"
        f" && {_cel_total(4)} && {_cel_total(6)})"
    )


def _cel_total(version: int) -> str:
    counts = "i.contains(':')" if version == 6 else "!i.contains(':')"
    longest = skipped.LONGEST_COUNTED_PREFIX[version]
    powers = "[" + ", ".join(str(2 ** (longest - n)) for n in range(longest + 1)) + "]"
    size = f"int(i.split('/')[1]) < {longest} ? int(i.split('/')[1]) : {longest}"
    one = f"{counts} ? {powers}[i.contains('/') ? ({size}) : {longest}] : 0"
    return f"xs.map(i, {one}).sum() <= {skipped.most(version)}"


def cel_prefixes(name: str, text: str) -> list[tuple[str, str]]:
    """Variables in CEL, each of those before it: `<name>_prefixes` has of each network of a list that
    was checked its IP version and its prefix bit by bit, in letters. So one network holds another
    exactly if its text begins the other's. (CEL has CIDRs since Kubernetes 1.31 only, and bounds how
    deep an expression may be, hence the steps.) `text` is an expression; empty, there are none.
    """
    at, hexes = f"variables.{name}", "'0123456789abcdef'"
    address, digit = "i.split('/')[0]", "{0}.substring({1}, {1} + 1)"
    v4 = (
        f"{address}.split('.').map(b, {digit.format(hexes, 'int(b) / 16')}"
        f" + {digit.format(hexes, 'int(b) % 16')}).join('')"
    )
    group = "n < a.size() ? a[n] : n >= 8 - z.size() ? z[n - 8 + z.size()] : '0'"
    v6 = (
        f"[{address}.lowerAscii().split('::')].map(s, [s[0].split(':').filter(x, x != '')].map(a, "
        "[s.map(x, x.split(':').filter(y, y != ''))[s.size() - 1].filter(y, s.size() == 2)].map(z, "
        f"[0, 1, 2, 3, 4, 5, 6, 7].map(n, ['000' + ({group})]"
        ".map(g, g.substring(g.size() - 4, g.size()))[0]).join(''))[0])[0])[0]"
    )
    size = "i.contains('/') ? int(i.split('/')[1]) : i.contains(':') ? 128 : 32"

    def spelled(numbers: range) -> str:
        bits = [f"{one:04b}".replace("0", "x").replace("1", "y") for one in numbers]
        return "".join(
            f".replace('{one:x}', '{text}')" for one, text in zip(numbers, bits, strict=True)
        )

    one = f"{at}_bits.split(',')[n]"
    return [
        (f"{name}_items", f"({text}).split(',').filter(i, i != '')"),
        (f"{name}_sizes", f"{at}_items.map(i, {size})"),
        (f"{name}_hex", f"{at}_items.map(i, i.contains(':') ? {v6} : {v4}).join(',')"),
        (f"{name}_half", f"{at}_hex{spelled(range(8))}"),
        (f"{name}_bits", f"{at}_half{spelled(range(8, 16))}"),
        (
            f"{name}_prefixes",
            f"variables.numbers.filter(n, n < {at}_sizes.size()).map(n, "
            f"({one}.size() == 128 ? 'six' : 'four') + {one}.substring(0, {at}_sizes[n]))",
        ),
    ]


def check_share(text: str, cluster_cidrs: str) -> None:
    """What `SUBNETS` has read, against the cluster's own networks. Raises ValueError with a way out."""
    networks, cluster = ([ip_network(i) for i in t.split(",") if i] for t in (text, cluster_cidrs))
    if (one := skipped.of_the_cluster(networks, cluster)) is not None:
        raise ValueError(
            f"may not be more than a quarter of {one}, a network of the cluster: name the "
            "destinations alone or their ports (skip-outbound-ports); where the cluster does not use "
            "all of it, the chart's clusterCidrs is to name what it uses"
        )


def cel_share(skips: str, cluster: str) -> str:
    """CEL for `check_share`, of two names that `cel_prefixes` was given."""
    bits = skipped.SHARE_BITS
    powers = "[" + ", ".join(str(2 ** (bits - n)) for n in range(bits + 1)) + "]"
    longer = "(s.size() - c.size())"
    share = (
        f"s.startsWith(c) ? {powers}[{longer} < {bits} ? {longer} : {bits}]"
        f" : c.startsWith(s) ? {2**bits} : 0"
    )
    listed = f"variables.{cluster}_prefixes"
    return (
        f"variables.{skips}_items.size() == 0 || ({listed}.size() == variables.{cluster}_items.size()"
        f" && {listed}.all(c, variables.{skips}_prefixes.map(s, {share}).sum() <= {skipped.MAX_SHARE}))"
    )


def _check_upstreams(text: str) -> None:
    seen = set()
    for item in _items(text):
        _full(_UPSTREAM, item)
        near, _, rest = item.partition("=")
        host, _, far = rest.partition(":")
        if len(host) > 253:
            raise ValueError
        if not 1 <= int(far) <= 65535:
            raise ValueError(f"{int(far)} is no port")
        if (port := _port(near)) in seen:
            raise ValueError(f"local port {port} is given twice")
        seen.add(port)


def _cel_upstreams(text: str) -> str:
    own = " && ".join(f"l != {p}" for p in sorted(contract.OWN_PORTS))
    near, rest = "int(i.split('=')[0])", "i.split('=')[1].split(':')"
    return (
        f"[{text}.split(',')].all(xs, xs.size() <= {MAX_ITEMS}"
        f" && xs.all(i, {matches('i', _UPSTREAM)}"
        f" && [{near}].all(l, 1 <= l && l <= 65535 && {own})"
        f" && {rest}[0].size() <= 253"
        f" && [int({rest}[1])].all(f, 1 <= f && f <= 65535))"
        f" && [xs.map(i, {near})].all(ls, ls.all(l, ls.exists_one(o, o == l))))"
    )


def one_of(*choices: str) -> Kind:
    """One word of these."""

    def check(text: str) -> None:
        if text not in choices:
            raise ValueError

    words = " or ".join((", ".join(choices[:-1]), choices[-1]))
    return Kind(words, check, lambda text: f"{text} in {listed(choices)}")


def _check_workers(text: str) -> None:
    _full(_WORKERS, text)
    if int(text) > _MAX_WORKERS:
        raise ValueError


def _cel_workers(text: str) -> str:
    return f"{matches(text, _WORKERS)} && int({text}) <= {_MAX_WORKERS}"


def _check_grace(text: str) -> None:
    _full(_DURATION, text)
    if int(text[:-1]) * (60 if text.endswith("m") else 1) > _MAX_GRACE_S:
        raise ValueError


def _cel_grace(text: str) -> str:
    number = f"int({text}.substring(0, {text}.size() - 1))"
    unit = f"({text}.endsWith('m') ? 60 : 1)"
    return f"{matches(text, _DURATION)} && {number} * {unit} <= {_MAX_GRACE_S}"


def _amount(pattern: str) -> tuple[Callable[[str], None], Callable[[str], str]]:
    def check(text: str) -> None:
        _full(pattern, text)
        if re.fullmatch(_NOTHING, text):
            raise ValueError("nothing at all")

    return check, lambda text: f"{matches(text, pattern)} && !{matches(text, _NOTHING)}"


def cpu_amount(text: str) -> int:
    """Thousandths of a CPU of a text that was checked."""
    if text.endswith("m"):
        return int(text[:-1])
    whole, _, part = text.partition(".")
    return int(whole) * 1000 + int((part + "000")[:3])


def cel_cpu_amount(text: str) -> str:
    """CEL for `cpu_amount` of an expression."""
    parts = f"{text}.split('.')"
    return (
        f"({text}.endsWith('m') ? int({text}.substring(0, {text}.size() - 1)) : "
        f"int({parts}[0]) * 1000 + ({parts}.size() == 1 ? 0 : "
        f"int(({parts}[1] + '000').substring(0, 3))))"
    )


def memory_amount(text: str) -> int:
    """Bytes of a text that was checked."""
    number, unit = _split(text)
    return number * _UNITS.get(unit, 1)


def cel_memory_amount(text: str) -> str:
    """CEL for `memory_amount` of an expression."""
    found = f"int({text})"
    for unit, size in _UNITS.items():  # the longer ones last, so that they are asked for first
        number = f"int({text}.substring(0, {text}.size() - {len(unit)}))"
        found = f"{text}.endsWith('{unit}') ? {number} * {size} : {found}"
    return f"({found})"


def _split(text: str) -> tuple[int, str]:
    number = text.rstrip("kMGi")
    return int(number), text.removeprefix(number)


def cpu_text(text: str) -> str:
    """As the API server spells it: the pod must look the same when it is seen again."""
    whole, milli = divmod(cpu_amount(text), 1000)
    return f"{whole * 1000 + milli}m" if milli else str(whole)


def memory_text(text: str) -> str:
    """As the API server spells it: the largest unit of its family without a fraction.

    (Kubernetes, "Quantity": canonical form.)
    """
    size, unit = _split(text)
    units, step = (_BINARY_UNITS, 1024) if unit.endswith("i") else (_DECIMAL_UNITS, 1000)
    power = units.index(unit)
    while size % step == 0 and power + 1 < len(units):
        size, power = size // step, power + 1
    return f"{size}{units[power]}"


_PORTS_FORM = "ports and ranges such as 5432,9000-9010"
PORTS = Kind(_PORTS_FORM, _check_ports, _cel_ports, is_list=True)
SKIPPED_PORTS = Kind(_PORTS_FORM, _check_ports, _cel_ports, is_list=True, may_be_empty=True)
HTTP_PORTS = Kind(
    f"{_PORTS_FORM}, or {contract.NO_HTTP_PORTS}",
    _check_http_ports,
    _cel_http_ports,
    is_list=True,
    may_be_empty=True,
)
SUBNETS = Kind(
    "networks such as 192.0.2.0/24,2001:db8::/32",
    _check_subnets,
    _cel_subnets,
    is_list=True,
    may_be_empty=True,
)
UPSTREAMS = Kind(
    "pairs such as 5432=db.prod:5432,6379=redis-0.redis.prod:6379",
    _check_upstreams,
    _cel_upstreams,
    is_list=True,
    may_be_empty=True,
)
WORKERS = Kind(f"a whole number from 1 to {_MAX_WORKERS}", _check_workers, _cel_workers)
GRACE = Kind(f"a duration such as 30s or 2m, at most {_MAX_GRACE_S}s", _check_grace, _cel_grace)
CPU = Kind("a CPU quantity such as 100m or 0.5", *_amount(_CPU))
MEMORY = Kind("a memory quantity such as 64Mi", *_amount(_MEMORY))
