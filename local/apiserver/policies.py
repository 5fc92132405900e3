"""ValidatingAdmissionPolicies, their CEL evaluated for real, as the API server does (Kubernetes
"Validating Admission Policy"). Pure but for the log.

The expressions run in Google's own CEL, with those functions of Kubernetes' library that the chart uses
(Kubernetes "CEL in Kubernetes": strings, and `sum` of lists). Not here: parameters, authorizer checks,
and the type checking against schemas that a real API server does when a policy is made. Where the CEL
package is not to be had (its wheels are for x86-64 Linux), a policy that would apply is an error: it
must not seem to guard.
"""

import functools
import importlib.util
import string
from collections.abc import Iterator, Mapping
from typing import Any

from local.objects import Object, dig, name_of

_NAMES = ("object", "oldObject", "request", "namespaceObject", "variables")


class PolicyBroken(Exception):
    """An expression does not compile, or failed on this object."""


def judge(policy: Object, binding: Object, facts: Mapping[str, Any]) -> str:
    """Why the policy refuses what `facts` say (by the names of its CEL), or "".

    Raises PolicyBroken when an expression fails; what that means its failurePolicy says.
    """
    known = _known(policy, facts)
    for validation in policy["spec"].get("validations") or ():
        if _evaluate(validation["expression"], known) is not True:
            message = validation.get("message") or f"failed expression: {validation['expression']}"
            return (
                f"ValidatingAdmissionPolicy '{name_of(policy)}' with binding "
                f"'{name_of(binding)}' denied request: {' '.join(message.split())}"
            )
    return ""


def audit(policy: Object, facts: Mapping[str, Any]) -> dict[str, str]:
    """The audit annotations that the policy gives; empty ones are left out."""
    known = _known(policy, facts)
    found = {
        one["key"]: str(_evaluate(one["valueExpression"], known))
        for one in policy["spec"].get("auditAnnotations") or ()
    }
    return {key: value for key, value in found.items() if value}


def bindings_of(policy: Object, bindings: list[Object]) -> Iterator[Object]:
    """The bindings that make this policy deny."""
    for binding in bindings:
        if dig(binding, "spec", "policyName") == name_of(policy) and "Deny" in (
            dig(binding, "spec", "validationActions") or ()
        ):
            yield binding


def _known(policy: Object, facts: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {name: _plain(facts.get(name)) for name in _NAMES}
    variables: dict[str, Any] = {}
    for variable in policy["spec"].get("variables") or ():
        known["variables"] = dict(variables)
        variables[variable["name"]] = _evaluate(variable["expression"], known)
    known["variables"] = variables
    return known


def _plain(value: Any) -> Any:
    """Without nulls: in an API object a field that is null is absent."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _evaluate(expression: str, known: Mapping[str, Any]) -> Any:
    try:
        value = _compiled(expression).eval(data=dict(known))
        plain = value.plain_value()
    except (RuntimeError, ValueError, TypeError) as e:
        raise PolicyBroken(f"{e} in {' '.join(expression.split())[:200]}") from e
    if value.type() == _error_type():
        raise PolicyBroken(f"{plain} in {' '.join(expression.split())[:200]}")
    return plain


@functools.lru_cache(maxsize=512)
def _compiled(expression: str) -> Any:
    return _environment().compile(expression)


@functools.cache
def _environment() -> Any:
    cel = _cel()
    kinds = cel.Type
    texts, of = kinds.List(kinds.STRING), cel.Overload
    named = [
        ("split", texts, (kinds.STRING, kinds.STRING), str.split),
        ("join", kinds.STRING, (texts, kinds.STRING), lambda items, by: by.join(items)),
        ("trim", kinds.STRING, (kinds.STRING,), str.strip),
        ("indexOf", kinds.INT, (kinds.STRING, kinds.STRING), str.find),
        ("substring", kinds.STRING, (kinds.STRING, kinds.INT, kinds.INT), _substring),
        ("lowerAscii", kinds.STRING, (kinds.STRING,), lambda text: text.translate(_LOWER)),
        ("upperAscii", kinds.STRING, (kinds.STRING,), lambda text: text.translate(_UPPER)),
        ("replace", kinds.STRING, (kinds.STRING,) * 3, str.replace),
        ("sum", kinds.INT, (kinds.List(kinds.INT),), sum),
    ]
    functions = [
        cel.FunctionDecl(
            name,
            [of(f"podlink_{name}", returns, list(takes), is_member=True, impl=impl)],
        )
        for name, returns, takes, impl in named
    ]
    return cel.NewEnv(variables=dict.fromkeys(_NAMES, kinds.DYN), functions=functions)


_LOWER = {ord(letter): ord(letter.lower()) for letter in string.ascii_uppercase}
_UPPER = {ord(letter): ord(letter.upper()) for letter in string.ascii_lowercase}


def _substring(text: str, start: int, end: int) -> str:
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"no characters from {start} to {end}")
    return text[start:end]


def _error_type() -> Any:
    return _cel().Type.ERROR


def available() -> bool:
    """Whether this machine can evaluate policies."""
    return importlib.util.find_spec("cel_expr_python") is not None


def _cel() -> Any:
    try:
        from cel_expr_python import cel
    except ImportError as e:
        raise PolicyBroken("this machine has no CEL: there is no wheel of cel-expr-python") from e
    return cel
