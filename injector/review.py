"""AdmissionReview in, AdmissionReview out (admission.k8s.io/v1). Pure.

The one place where a raw request is taken apart. Whatever is wrong with it ends in an answer that
refuses the pod and says why; nothing ends in a pod let in unchanged by mistake.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from injector.annotations import AnnotationRefused
from injector.container import MeshSettings
from injector.guard import PodRefused, carries_ours, check_ephemeral
from injector.mutate import mutate
from injector.shape import check_shape
from kit.checked import LABEL

_API_VERSION, _KIND = "admission.k8s.io/v1", "AdmissionReview"
_MAX_TEXT = 1024
_MAX_UID = 128


class ReviewMalformed(Exception):
    """The body is no AdmissionReview that can be answered."""

    reason = "review_malformed"


@dataclass(frozen=True, slots=True)
class Question:
    """One admission request, taken apart. `pod` is the raw object."""

    uid: str
    namespace: str
    operation: str
    subresource: str
    pod: Mapping[str, Any]

    @property
    def pod_name(self) -> str:
        """For the log: unchecked, but no longer than a name."""
        metadata = self.pod.get("metadata")
        if not isinstance(metadata, dict):
            return ""
        name = metadata.get("name") or metadata.get("generateName") or ""
        return name[:253] if isinstance(name, str) else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided: `outcome` is `injected`, `unchanged`, `skipped` or `refused`."""

    response: dict[str, Any]
    outcome: str
    reason: str = ""
    text: str = ""


def read_review(body: bytes) -> Question:
    """Take a request apart. Raises ReviewMalformed, with a text that holds nothing of the body."""
    try:
        review = json.loads(body)
        if (review["apiVersion"], review["kind"]) != (_API_VERSION, _KIND):
            raise ReviewMalformed(f"neither {_API_VERSION} nor {_KIND}")
        request = review["request"]
        resource = request["resource"]
        if (resource.get("group", ""), resource["resource"]) != ("", "pods"):
            raise ReviewMalformed("not about pods")
        question = Question(
            uid=request["uid"],
            namespace=request["namespace"],
            operation=request["operation"],
            subresource=request.get("subResource") or "",
            pod=request["object"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReviewMalformed(f"unreadable: {type(error).__name__}") from error
    texts = (question.uid, question.namespace, question.operation, question.subresource)
    if not all(isinstance(text, str) for text in texts) or not isinstance(question.pod, dict):
        raise ReviewMalformed("a field has the wrong type")
    if len(question.uid) > _MAX_UID or LABEL.fullmatch(question.namespace) is None:
        raise ReviewMalformed("the uid or the namespace has no such form")
    return question


def answer(question: Question, namespace: Mapping[str, Any], mesh: MeshSettings) -> Verdict:
    """Decide about one pod. `namespace` is the raw Namespace object. Never raises for bad pods."""
    try:
        if question.subresource == "ephemeralcontainers":
            check_shape(question.pod)
            if carries_ours(question.pod["spec"]):
                check_ephemeral(question.pod["spec"])
            return Verdict(_response(question.uid), "unchanged")
        if question.operation != "CREATE" or question.subresource:
            return Verdict(_response(question.uid), "unchanged")
        mutation = mutate(question.pod, namespace, mesh)
    except (PodRefused, AnnotationRefused) as refused:
        return refuse(question.uid, refused.reason, str(refused))
    except Exception as error:  # let in unchanged by mistake: never
        return refuse(question.uid, "pod_malformed", f"the pod is unreadable: {error!r}")
    response = _response(question.uid)
    if mutation.warnings:
        response["response"]["warnings"] = [warning[:256] for warning in mutation.warnings]
    if mutation.patch:
        response["response"]["patchType"] = "JSONPatch"
        response["response"]["patch"] = base64.b64encode(
            json.dumps(mutation.patch).encode()
        ).decode()
    if mutation.skipped:
        return Verdict(response, "skipped", mutation.skipped)
    return Verdict(response, "injected" if mutation.patch else "unchanged")


def refuse(uid: str, reason: str, text: str, code: int = 403) -> Verdict:
    """An answer that keeps the pod out, with one readable line for whoever applied it."""
    message = f"podlink: {text}"[:_MAX_TEXT]
    response = _response(uid, allowed=False)
    response["response"]["status"] = {"code": code, "reason": "Forbidden", "message": message}
    return Verdict(response, "refused", reason, message)


def _response(uid: str, allowed: bool = True) -> dict[str, Any]:
    body = {"uid": uid, "allowed": allowed}
    return {"apiVersion": _API_VERSION, "kind": _KIND, "response": body}
