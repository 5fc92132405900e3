"""podlink's objects without Helm: the manifests that the chart made, with an installer's choices. Pure.

The manifests in `cli/manifests` are written by `make render` through Helm itself, and a test compares
what comes out here with what Helm makes of the same choices.
"""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kit import contract

Object = dict[str, Any]

DEFAULT_IMAGE = f"podlink/podlink:{contract.VERSION}"
TOKEN_SECRET = "podlink-traces-token"  # noqa: S105 - its name
_ONLY = "podlink-only"
_FOLDER = Path(__file__).with_name("manifests")
PROGRAMS = ("podlink-ca", "podlink-registry", "podlink-injector", "podlink-traces")
GUARD_KINDS = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What an installer may choose without Helm."""

    namespace: str = contract.SYSTEM_NAMESPACE
    image: str = DEFAULT_IMAGE
    trust_domain: str = contract.DEFAULT_TRUST_DOMAIN
    cni: bool = False
    guard: bool = True
    only_namespace: str = ""
    also_images: tuple[str, ...] = ()
    """Images that the guard lets pods keep during an upgrade."""


class ChoiceRefused(Exception):
    """Choices that do not go together. One line with what to do."""


def build(choices: Choices) -> list[Object]:
    """The objects in the order in which they are to be applied. Raises ChoiceRefused."""
    if choices.cni and choices.only_namespace:
        raise ChoiceRefused("--cni with --only-namespace takes the Helm chart")
    if choices.only_namespace == choices.namespace:
        raise ChoiceRefused("--only-namespace must be another namespace than podlink's own")
    name = "podlink"
    if choices.cni or choices.only_namespace:
        name = "podlink-cni" if choices.cni else "podlink-one-namespace"
    objects = list(yaml.safe_load_all((_FOLDER / f"{name}.yaml").read_text()))
    made = [_replaced(one, choices) for one in objects]
    for one in made:
        _set_environment(one, choices)
        if one["kind"] == GUARD_KINDS[0]:
            _set_variables(one, choices)
    return made if choices.guard else without_guard(made)


def without_guard(objects: list[Object]) -> list[Object]:
    """For clusters that know no admission policies: the webhook itself then fails closed."""
    kept = [one for one in objects if one["kind"] not in GUARD_KINDS]
    for one in kept:
        if one["kind"] == "MutatingWebhookConfiguration":
            for webhook in one["webhooks"]:
                webhook["failurePolicy"] = "Fail"
    return kept


def token_secret(namespace: str) -> Object:
    """A new secret for whoever asks the trace store."""
    token = base64.b64encode(secrets.token_hex(32).encode()).decode()
    labels = {"app.kubernetes.io/part-of": "podlink", "app.kubernetes.io/managed-by": "podlink"}
    metadata = {"name": TOKEN_SECRET, "namespace": namespace, "labels": labels}
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque",
        "data": {"token": token},
    }  # fmt: skip


def _replaced(value: Any, choices: Choices) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(one, choices) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, choices) for one in value]
    if not isinstance(value, str):
        return value
    if value == _ONLY:
        return choices.only_namespace
    return value.replace(contract.SYSTEM_NAMESPACE, choices.namespace).replace(
        DEFAULT_IMAGE, choices.image
    )


def _set_environment(one: Object, choices: Choices) -> None:
    if one["kind"] != "Deployment":
        return
    values = {
        "PODLINK_TRUST_DOMAIN": choices.trust_domain,
        "PODLINK_PROXY_IMAGES": ",".join(_images(choices)),
    }
    for container in one["spec"]["template"]["spec"]["containers"]:
        for entry in container.get("env") or ():
            if entry["name"] in values:
                entry["value"] = values[entry["name"]]


def _images(choices: Choices) -> list[str]:
    """What a proxy's image may be: the mesh's first."""
    return [choices.image, *(one for one in choices.also_images if one != choices.image)]


def _set_variables(policy: Object, choices: Choices) -> None:
    for variable in policy["spec"]["variables"]:
        if variable["name"] == "images":
            variable["expression"] = _cel(_images(choices))
        if variable["name"] == "told":
            told = json.loads(variable["expression"])
            variable["expression"] = _cel(told | {"PODLINK_TRUST_DOMAIN": choices.trust_domain})


def _cel(value: Any) -> str:
    """As Helm writes it: JSON is CEL."""
    return json.dumps(value, separators=(",", ":"))


def dump(objects: list[Object]) -> str:
    """YAML for `kubectl apply -f -`."""
    return yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True, width=100)
