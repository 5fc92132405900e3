"""Names that two packages write down are the same names."""

from certs import names
from kit import contract


def test_certs_and_the_sidecar_agree_on_names() -> None:
    for name in ("TOKEN_AUDIENCE", "BUNDLE_CONFIG_MAP", "BUNDLE_KEY", "INJECT_LABEL"):
        assert getattr(names, name) == getattr(contract, name)
