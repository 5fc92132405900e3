"""A LinkPolicy object into a compiled policy, or the one field that is wrong with it. Pure.

What is half understood might allow what it forbids (Istio CVE-2022-21679), so whatever is not known
here is an error: an unknown field, another version, a wildcard. The schema of the CRD
(charts/podlink/files/linkpolicy.crd.yaml) says the same to whoever writes a policy; this reader
does not rely on it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network
from typing import Any

from kit.checked import shown
from policy.rules import Network, Policy, Rule, Source
from policy.selector import EVERY_POD, OPERATORS, Requirement, Selector

GROUP, VERSION, KIND = "podlink.dev", "v1alpha1", "LinkPolicy"
API_VERSION = f"{GROUP}/{VERSION}"
PLURAL = "linkpolicies"

MAX_RULES = 64
"""In `allow`, and as many in `deny`."""
MAX_PEERS = 64
"""Entries of one rule's `from`, of its `fromCIDRs` and of its `ports`."""
MAX_REQUIREMENTS = 32

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL, re.ASCII)
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_MAX_SUBDOMAIN = 253
_MAX_LABEL_KEY = 317  # a prefix, a slash and a name of 63
_SHOWN = 80


class PolicyInvalid(ValueError):
    """`field` is where in the object ("spec.allow[0].ports[1]"), `problem` what is wrong there."""

    reason = "policy_invalid"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """One LinkPolicy: which pods of its namespace, and what is then in force for them."""

    namespace: str
    name: str
    selector: Selector
    policy: Policy

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        return namespace == self.namespace and self.selector.selects(labels)


def parse(raw: object, namespace: str = "") -> LinkPolicy:
    """Read one object. `namespace` is meant where the object names none. Raises PolicyInvalid."""
    top = _mapping(raw, "the object")
    if top.get("apiVersion") != API_VERSION:
        raise PolicyInvalid("apiVersion", f"{shown(top.get('apiVersion'))} is not {API_VERSION}")
    if top.get("kind") != KIND:
        raise PolicyInvalid("kind", f"{shown(top.get('kind'))} is not {KIND}")
    _known(top, "", {"apiVersion", "kind", "metadata", "spec", "status"})
    metadata = _mapping(top.get("metadata"), "metadata")
    own = _name(metadata.get("namespace") or namespace, "metadata.namespace", _NAMESPACE)
    name = _name(metadata.get("name"), "metadata.name", _SUBDOMAIN)
    return parse_spec(own, name, top.get("spec"))


def parse_spec(namespace: str, name: str, raw_spec: object) -> LinkPolicy:
    """The `spec` of the LinkPolicy called so. Raises PolicyInvalid."""
    spec = _mapping(raw_spec, "spec")
    _known(spec, "spec", {"selector", "mode", "allow", "deny"})
    return LinkPolicy(
        namespace,
        name,
        _selector(spec),
        Policy(
            f"{namespace}/{name}",
            allow=_rules(spec, "allow"),
            deny=_rules(spec, "deny"),
            audit=_audits(spec),
        ),
    )


def closed(namespace: str, name: str, raw_spec: object) -> LinkPolicy:
    """What stands for an object that cannot be read and has no earlier form to fall back on: it
    lets nobody in, at the pods that its selector names if that can be read, else at every pod of
    its namespace. Takes whatever comes and raises nothing.

    An object that says plainly that it only audits has never enforced anything and still does not.
    """
    spec = raw_spec if isinstance(raw_spec, Mapping) else {}
    try:
        selector = _selector(spec)
    except PolicyInvalid:
        selector = EVERY_POD
    audit = spec.get("mode") == "Audit"
    return LinkPolicy(namespace, name, selector, Policy(f"{namespace}/{name}", audit=audit))


def _audits(spec: Mapping[str, Any]) -> bool:
    mode = spec.get("mode", "Enforce")
    if mode not in ("Enforce", "Audit"):
        raise PolicyInvalid("spec.mode", f"{shown(mode)} is neither Enforce nor Audit")
    return bool(mode == "Audit")


def _rules(spec: Mapping[str, Any], key: str) -> tuple[Rule, ...]:
    if key not in spec:
        return ()
    listed = _sequence(spec[key], f"spec.{key}", MAX_RULES, may_be_empty=True)
    return tuple(
        _rule(_mapping(one, f"spec.{key}[{i}]"), f"spec.{key}[{i}]", f"{key}[{i}]")
        for i, one in enumerate(listed)
    )


def _rule(raw: Mapping[str, Any], at: str, name: str) -> Rule:
    _known(raw, at, {"from", "fromCIDRs", "ports"})
    if "from" not in raw and "fromCIDRs" not in raw:
        raise PolicyInvalid(at, "says nobody: name peers in from or addresses in fromCIDRs")
    sources = _each(raw, "from", at, _source)
    networks = _each(raw, "fromCIDRs", at, _network)
    ports = _each(raw, "ports", at, _port)
    return Rule(name, tuple(sources), tuple(networks), frozenset(ports))


def _source(raw: object, at: str) -> Source:
    source = _mapping(raw, at)
    _known(source, at, {"namespace", "serviceAccount"})
    namespace = _name(source.get("namespace"), f"{at}.namespace", _NAMESPACE)
    if "serviceAccount" not in source:
        return Source(namespace)
    account = _name(source["serviceAccount"], f"{at}.serviceAccount", _SUBDOMAIN)
    return Source(namespace, account)


def _network(raw: object, at: str) -> Network:
    if not isinstance(raw, str) or "/" not in raw:
        raise PolicyInvalid(at, f"{shown(raw)} is no CIDR such as 10.0.0.0/8")
    try:
        network = ip_network(raw)
    except ValueError as e:
        raise PolicyInvalid(at, str(e)[:_SHOWN]) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise PolicyInvalid(at, f"{shown(raw)}: write an IPv4 network as IPv4")
    if str(network) != raw:  # two spellings of one network would be read as two
        raise PolicyInvalid(at, f"{shown(raw)} is written {network}")
    return network


def _port(raw: object, at: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= 65535:
        raise PolicyInvalid(at, f"{shown(raw)} is no port from 1 to 65535")
    return raw


def _selector(spec: Mapping[str, Any]) -> Selector:
    if "selector" not in spec:
        return EVERY_POD
    at = "spec.selector"
    raw = _mapping(spec["selector"], at)
    _known(raw, at, {"matchLabels", "matchExpressions"})
    found: list[Requirement] = []
    if "matchLabels" in raw:
        labels = _mapping(raw["matchLabels"], f"{at}.matchLabels")
        if len(labels) > MAX_REQUIREMENTS:
            raise PolicyInvalid(at, f"more than {MAX_REQUIREMENTS} requirements")
        keys = [_label_key(key, f"{at}.matchLabels") for key in labels]
        for key in sorted(keys):
            value = _label_value(labels[key], f"{at}.matchLabels[{shown(key)}]")
            found.append(Requirement(key, "In", frozenset([value])))
    if "matchExpressions" in raw:
        listed = _sequence(
            raw["matchExpressions"], f"{at}.matchExpressions", MAX_REQUIREMENTS, True
        )
        for i, one in enumerate(listed):
            found.append(_requirement(one, f"{at}.matchExpressions[{i}]"))
    if len(found) > MAX_REQUIREMENTS:
        raise PolicyInvalid(at, f"more than {MAX_REQUIREMENTS} requirements")
    return Selector(tuple(found))


def _requirement(raw: object, at: str) -> Requirement:
    one = _mapping(raw, at)
    _known(one, at, {"key", "operator", "values"})
    operator = one.get("operator")
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise PolicyInvalid(
            f"{at}.operator", f"{shown(operator)} is none of {', '.join(sorted(OPERATORS))}"
        )
    takes_values = operator in ("In", "NotIn")
    values = one.get("values", ())
    if bool(values) != takes_values:
        raise PolicyInvalid(
            f"{at}.values", f"{operator} takes {'some' if takes_values else 'none'}"
        )
    if takes_values:
        values = _sequence(values, f"{at}.values", MAX_PEERS)
        values = [_label_value(value, f"{at}.values[{i}]") for i, value in enumerate(values)]
    return Requirement(_label_key(one.get("key"), f"{at}.key"), str(operator), frozenset(values))


def _label_key(raw: object, at: str) -> str:
    if isinstance(raw, str) and len(raw) <= _MAX_LABEL_KEY:
        prefix, slash, name = raw.rpartition("/")
        right = not slash or (len(prefix) <= _MAX_SUBDOMAIN and _SUBDOMAIN.fullmatch(prefix))
        if right and _LABEL_NAME.fullmatch(name):
            return raw
    raise PolicyInvalid(at, f"{shown(raw)} is no label key")


def _label_value(raw: object, at: str) -> str:
    if isinstance(raw, str) and (raw == "" or _LABEL_NAME.fullmatch(raw)):
        return raw
    raise PolicyInvalid(at, f"{shown(raw)} is no label value")


def _each(raw: Mapping[str, Any], key: str, at: str, read: Any) -> list[Any]:
    if key not in raw:
        return []
    listed = _sequence(raw[key], f"{at}.{key}", MAX_PEERS)
    return [read(one, f"{at}.{key}[{i}]") for i, one in enumerate(listed)]


def _name(raw: object, at: str, form: re.Pattern[str]) -> str:
    if raw is None or raw == "":
        raise PolicyInvalid(at, "is missing")
    if not isinstance(raw, str) or len(raw) > _MAX_SUBDOMAIN or not form.fullmatch(raw):
        raise PolicyInvalid(at, f"{shown(raw)} is no whole name (patterns are not known)")
    return raw


def _mapping(raw: object, at: str) -> Mapping[str, Any]:
    if raw is None:
        raise PolicyInvalid(at, "is missing")
    if not isinstance(raw, Mapping):
        raise PolicyInvalid(at, f"{shown(raw)} is no object")
    return raw


def _sequence(raw: object, at: str, most: int, may_be_empty: bool = False) -> Sequence[object]:
    if not isinstance(raw, list):
        raise PolicyInvalid(at, f"{shown(raw)} is no list")
    if not raw and not may_be_empty:
        raise PolicyInvalid(at, "is empty: leave it out, or name something")
    if len(raw) > most:
        raise PolicyInvalid(at, f"has {len(raw)} entries, more than {most}")
    return raw


def _known(raw: Mapping[str, Any], at: str, fields: set[str]) -> None:
    for key in raw:
        if key not in fields:
            name = key[:_SHOWN] if isinstance(key, str) and key.isprintable() else shown(key)
            dotted = f"{at}.{name}" if at else name
            known = ", ".join(sorted(fields))
            raise PolicyInvalid(dotted[:_SHOWN], f"is not known here ({known})")
