"""Exactly our form of a SPIFFE ID is an identity; everything near it is not."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.identity import IdentityMalformed, WorkloadIdentity, check_trust_domain
from tests.certs.bad_leaves import BAD_PATHS

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
dns_names = st.lists(labels, min_size=1, max_size=3).map(".".join)
identities = st.builds(WorkloadIdentity, dns_names, labels, dns_names)


@given(identities)
def test_what_is_written_is_read_back(identity: WorkloadIdentity) -> None:
    assert WorkloadIdentity.parse(str(identity)) == identity


@given(identities, identities)
def test_two_identities_never_share_a_text(one: WorkloadIdentity, other: WorkloadIdentity) -> None:
    assert (str(one) == str(other)) == (one == other)


@given(st.text(max_size=80))
def test_garbage_is_refused_or_read_back_unchanged(tail: str) -> None:
    with suppress(IdentityMalformed):
        uri = "spiffe://cluster.local/ns/" + tail
        assert str(WorkloadIdentity.parse(uri)) == uri


@given(identities, st.integers(0, 400), st.characters())
def test_one_character_more_is_another_identity_or_none(
    identity: WorkloadIdentity, at: int, extra: str
) -> None:
    uri = str(identity)
    with suppress(IdentityMalformed):
        assert WorkloadIdentity.parse(uri[:at] + extra + uri[at:]) != identity


@pytest.mark.attack_row(14)
@pytest.mark.parametrize("uri", BAD_PATHS.values(), ids=BAD_PATHS)
def test_a_malformed_id_is_refused_with_an_escaped_message(uri: bytes) -> None:
    with pytest.raises(IdentityMalformed) as refused:
        WorkloadIdentity.parse(uri.decode("latin-1"))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1200


@pytest.mark.attack_row(14)
@pytest.mark.parametrize(
    "parts",
    [
        ("cluster.local", "a/sa/b", "c"),
        ("cluster.local", "shop", "api/ns/x"),
        ("cluster.local/ns/shop/sa/api", "x", "y"),
        ("cluster.local", "a.b", "c"),
        ("cluster.local", "", "c"),
        ("cluster.local", "shop", "a" * 254),
        ("a" * 64, "shop", "api"),
        (".".join(["a" * 63] * 4) + ".bc", "shop", "api"),
    ],
)
def test_parts_that_could_form_another_name_make_no_identity(parts: tuple[str, str, str]) -> None:
    with pytest.raises(IdentityMalformed):
        WorkloadIdentity(*parts)


def test_a_dotted_service_account_is_not_its_dashed_neighbour() -> None:
    dotted = WorkloadIdentity("cluster.local", "shop", "a.b")
    assert dotted != WorkloadIdentity("cluster.local", "shop", "a-b")


@pytest.mark.parametrize("name", ["", "Cluster.local", "a..b", "-a", "a_b", "a/b", "a" * 256])
def test_a_wrong_trust_domain_is_refused(name: str) -> None:
    assert check_trust_domain("cluster.local") == "cluster.local"
    with pytest.raises(IdentityMalformed):
        check_trust_domain(name)
