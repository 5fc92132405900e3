"""Calls the mutating webhooks over HTTPS, as the real API server does, and applies their patches.

(Kubernetes "Dynamic Admission Control".) A webhook that names a Service is reached through that
Service's ClusterIP, and its certificate must carry `<name>.<namespace>.svc` under `caBundle`.
"""

import asyncio
import base64
import binascii
import json
import ssl
import uuid
from dataclasses import dataclass
from typing import Any

import aiohttp

from local.apiserver import policies, resources
from local.apiserver.patch import json_patch
from local.apiserver.resources import Resource
from local.apiserver.selectors import labels_from_object
from local.apiserver.store import Store
from local.apiserver.tokens import User
from local.errors import ApiError
from local.objects import Object, dig, name_of

_DEFAULT_TIMEOUT_S = 10
_MAX_ANSWER_BYTES = 3 << 20


@dataclass(frozen=True, slots=True)
class Review:
    """One operation to be admitted."""

    resource: Resource
    operation: str
    namespace: str
    user: User
    dry_run: bool = False
    old: Object | None = None


class WebhookFailed(Exception):
    """The webhook could not be asked, or its answer made no sense."""


def applies(webhook: Object, review: Review, obj: Object, namespace: Object | None) -> bool:
    """Whether the rules and selectors of a webhook cover this operation. Pure."""
    resource = review.resource
    asked = (
        ("operations", review.operation),
        ("apiGroups", resource.group),
        ("apiVersions", resource.version),
        ("resources", resource.plural),
    )
    scope = "Namespaced" if resource.namespaced else "Cluster"
    for rule in webhook.get("rules") or ():
        named = all(v in rule.get(field, ()) or "*" in rule.get(field, ()) for field, v in asked)
        if named and rule.get("scope", "*") in ("*", scope):
            break
    else:
        return False
    if resource.key == resources.NAMESPACES.key:
        namespace = obj
    if namespace is not None and not labels_from_object(webhook.get("namespaceSelector"))(
        namespace
    ):
        return False
    return labels_from_object(webhook.get("objectSelector"))(obj)


class Admission:
    """Asks the webhooks that are configured in `store`. Close it with `await close()`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def admit(self, review: Review, obj: Object, warnings: list[str]) -> Object:
        """Return `obj` as the webhooks leave it. Raises ApiError when one denies or must not fail.

        A webhook with `reinvocationPolicy: IfNeeded` is asked again if a later one changed it.
        """
        namespace = self._store.get(resources.NAMESPACES.key, "", review.namespace)
        webhooks = self._webhooks()
        asked: list[tuple[Object, Object]] = []
        for webhook in webhooks:
            if applies(webhook, review, obj, namespace):
                obj = await self._ask(webhook, review, obj, warnings)
                asked.append((webhook, obj))
        for webhook, left in asked:
            if webhook.get("reinvocationPolicy") == "IfNeeded" and left != obj:
                obj = await self._ask(webhook, review, obj, warnings)
        self._check_policies(review, obj, namespace)
        return obj

    def _check_policies(self, review: Review, obj: Object, namespace: Object | None) -> None:
        """Validating admission policies see the object as the webhooks left it."""
        bindings = self._store.select(resources.POLICY_BINDINGS.key)
        for policy in self._store.select(resources.POLICIES.key):
            constraints = policy["spec"].get("matchConstraints") or {}
            covered = {**constraints, "rules": constraints.get("resourceRules")}
            if not applies(covered, review, obj, namespace):
                continue
            for binding in policies.bindings_of(policy, bindings):
                within = dig(binding, "spec", "matchResources") or {}
                if within and not applies(
                    {**within, "rules": within.get("resourceRules") or covered["rules"]},
                    review,
                    obj,
                    namespace,
                ):
                    continue
                self._judge(policy, binding, review, obj, namespace)

    def _judge(
        self, policy: Object, binding: Object, review: Review, obj: Object, namespace: Object | None
    ) -> None:
        deleting = review.operation == "DELETE"
        facts = {
            "object": None if deleting else obj,
            "oldObject": obj if deleting else review.old,
            "request": _request(review, obj),
            "namespaceObject": namespace,
        }
        try:
            why = policies.judge(policy, binding, facts)
        except policies.PolicyBroken as e:
            if policy["spec"].get("failurePolicy", "Fail") == "Ignore":
                return
            why = f"ValidatingAdmissionPolicy '{name_of(policy)}' cannot be evaluated: {e}"
        if why:
            what = f'{review.resource.qualified} "{obj["metadata"].get("name", "")}" is forbidden'
            raise ApiError(403, "Forbidden", f"{what}: {why}")

    def _webhooks(self) -> list[Object]:
        configurations = self._store.select(resources.MUTATING.key)
        return [w for c in configurations for w in c.get("webhooks") or ()]

    async def _ask(
        self, webhook: Object, review: Review, obj: Object, warnings: list[str]
    ) -> Object:
        name = webhook["name"]
        if review.dry_run and webhook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise ApiError(
                400, "BadRequest", f'admission webhook "{name}" does not support dry run'
            )
        try:
            response = await self._call(webhook, _request(review, obj))
            warnings.extend(response.get("warnings") or ())
            if response.get("allowed") is not True:
                status = response.get("status") or {}
                message = status.get("message") or "without explanation"
                raise ApiError(
                    int(status.get("code") or 403),
                    status.get("reason") or "Forbidden",
                    f'admission webhook "{name}" denied the request: {message}',
                )
            return _patched(response, obj)
        except WebhookFailed as e:
            if webhook.get("failurePolicy", "Fail") == "Ignore":
                return obj
            raise ApiError(
                500,
                "InternalError",
                f'Internal error occurred: failed calling webhook "{name}": {e}',
            ) from e

    async def _call(self, webhook: Object, request: Object) -> Object:
        url, host, context = self._where(webhook["clientConfig"])
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False, trust_env=False)
        timeout_s = webhook.get("timeoutSeconds", _DEFAULT_TIMEOUT_S)
        sent = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        try:
            async with self._session.post(
                url,
                json=sent,
                ssl=context,
                server_hostname=host,
                headers={"Host": host} if host else None,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as answer:
                body = await answer.content.read(_MAX_ANSWER_BYTES)
                if answer.status != 200:
                    raise WebhookFailed(f"it answered {answer.status}")
        except TimeoutError as e:
            raise WebhookFailed(f"no answer within {timeout_s} s") from e
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as e:
            raise WebhookFailed(f"{type(e).__name__}: {e}") from e
        try:
            response = json.loads(body)["response"]
            if response["uid"] != request["uid"]:
                raise ValueError("its answer carries another uid")
            return dict(response)
        except (ValueError, KeyError, TypeError) as e:
            raise WebhookFailed(f"its answer is no AdmissionReview: {e!r}") from e

    def _where(self, config: Object) -> tuple[str, str | None, ssl.SSLContext]:
        context = _context(config.get("caBundle"))
        if "service" not in config:
            return str(config["url"]), None, context
        ref = config["service"]
        service = self._store.get(resources.SERVICES.key, ref["namespace"], ref["name"])
        if service is None:
            raise WebhookFailed(f'service "{ref["name"]}" not found')
        host = f"{ref['name']}.{ref['namespace']}.svc"
        path = str(ref.get("path", "/")).lstrip("/")
        address = dig(service, "spec", "clusterIP")
        url = f"https://{address}:{ref.get('port', 443)}/{path}?timeout=10s"
        return url, host, context


def _context(ca_bundle: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_bundle:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=base64.b64decode(ca_bundle).decode("ascii"))
        except (ssl.SSLError, binascii.Error, UnicodeDecodeError) as e:
            raise WebhookFailed("clientConfig.caBundle holds no PEM certificate") from e
    return context


def _request(review: Review, obj: Object) -> Object:
    resource = review.resource
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    what = {"group": resource.group, "version": resource.version, "resource": resource.plural}
    deleting = review.operation == "DELETE"
    request: Object = {
        "uid": str(uuid.uuid4()),
        "kind": kind,
        "resource": what,
        "requestKind": kind,
        "requestResource": what,
        "name": obj["metadata"].get("name", ""),
        "operation": review.operation,
        "userInfo": review.user.as_object(),
        "object": None if deleting else obj,
        "oldObject": obj if deleting else review.old,
        "dryRun": review.dry_run,
        "options": {
            "apiVersion": "meta.k8s.io/v1",
            "kind": f"{review.operation.capitalize()}Options",
        },
    }
    if review.namespace:
        request["namespace"] = review.namespace
    if resource.key == resources.NAMESPACES.key:
        request["namespace"] = name_of(obj)
    return request


def _patched(response: Object, obj: Object) -> Object:
    raw: Any = response.get("patch")
    if not raw:
        return obj
    if response.get("patchType") != "JSONPatch":
        raise WebhookFailed(f"patchType must be JSONPatch, not {response.get('patchType')!r}")
    try:
        changed: Object = json_patch(obj, json.loads(base64.b64decode(raw, validate=True)))
    except (ApiError, ValueError) as e:
        raise WebhookFailed(f"its patch cannot be applied: {e}") from e
    return changed
