"""The leaves that all proxies of a run use have the form of podlink's own."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from bench.certificates import FAR_IDENTITY, NEAR_IDENTITY, make_certificates
from certs.trust.identity import WorkloadIdentity


@pytest.mark.parametrize(("side", "identity"), [("near", NEAR_IDENTITY), ("far", FAR_IDENTITY)])
def test_a_leaf_carries_one_identity_and_may_do_no_more(
    tmp_path: Path, side: str, identity: str
) -> None:
    made = make_certificates(tmp_path)
    leaf = x509.load_pem_x509_certificate((tmp_path / f"{side}.pem").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical  # the subject is empty (RFC 5280, 4.1.2.6)
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [identity]
    assert str(WorkloadIdentity.parse(identity)) == identity
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(made.authority.read_bytes()))


def test_a_stranger_names_the_far_identity_under_a_root_of_the_same_name(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    stranger = x509.load_pem_x509_certificate(made.stranger.chain.read_bytes())
    authority = x509.load_pem_x509_certificate(made.authority.read_bytes())
    assert stranger.issuer == authority.subject
    with pytest.raises(InvalidSignature):
        stranger.verify_directly_issued_by(authority)


def test_private_keys_are_readable_by_nobody_else(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    private = [*tmp_path.glob("*.key"), *tmp_path.glob("*.both.pem")]
    assert len(private) == 6
    assert {path.stat().st_mode & 0o077 for path in private} == {0}
