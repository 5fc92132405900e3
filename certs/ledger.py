"""The names of the CA's ledger spans: one span per certificate issued, refused or banned. Pure.

docs/spans.md says what each attribute means; a test compares its table with this file.
"""

from typing import Final, Literal

ISSUED: Final = "certificate issued"
REFUSED: Final = "certificate refused"
BANNED: Final = "certificate banned"
NAMES: Final = (ISSUED, REFUSED, BANNED)
ROTATED: Final = "root rotation"

BAN: Final = "podlink.certificate.ban"
BAN_BY: Final = "podlink.certificate.ban_by"
BAN_LIFTED: Final = "podlink.certificate.ban_lifted"
DIRECT: Final = "podlink.certificate.direct"
IDENTITY: Final = "podlink.certificate.identity"
IPS: Final = "podlink.certificate.ips"
ISSUER: Final = "podlink.certificate.issuer"
NODE: Final = "podlink.certificate.node"
NOT_AFTER: Final = "podlink.certificate.not_after"
NOT_BEFORE: Final = "podlink.certificate.not_before"
POD: Final = "podlink.certificate.pod"
POD_UID: Final = "podlink.certificate.pod_uid"
PROVISIONAL: Final = "podlink.certificate.provisional"
REASON: Final = "podlink.reason"
SERIAL: Final = "podlink.certificate.serial"
SHA256: Final = "podlink.certificate.sha256"
CLIENT_ADDRESS: Final = "client.address"
ERROR_MESSAGE: Final = "error.message"

OF_LEDGER: Final[dict[str, Literal["string", "int", "boolean"]]] = {
    BAN: "string",
    BAN_BY: "string",
    BAN_LIFTED: "boolean",
    CLIENT_ADDRESS: "string",
    DIRECT: "boolean",
    ERROR_MESSAGE: "string",
    IDENTITY: "string",
    IPS: "string",
    ISSUER: "string",
    NODE: "string",
    NOT_AFTER: "string",
    NOT_BEFORE: "string",
    POD: "string",
    POD_UID: "string",
    PROVISIONAL: "boolean",
    REASON: "string",
    SERIAL: "string",
    SHA256: "string",
}
"""Attributes of the three ledger spans."""

ROTATION_BY: Final = "podlink.rotation.by"
ROTATION_PHASE: Final = "podlink.rotation.phase"
ROTATION_SAID: Final = "podlink.rotation.said"

OF_ROTATION: Final[dict[str, Literal["string", "int", "boolean"]]] = {
    ROTATION_BY: "string",
    ROTATION_PHASE: "string",
    ROTATION_SAID: "string",
}
"""Attributes of `root rotation`."""
