"""One forge for all tests of this package: making keys is the slow part."""

import pytest

from tests.certs.forge import BadLeaf, Forge, Pair


@pytest.fixture(scope="session")
def forge() -> Forge:
    return Forge()


@pytest.fixture(scope="session")
def bad_leaves(forge: Forge) -> dict[str, BadLeaf]:
    return forge.bad_leaves()


@pytest.fixture(scope="session")
def good_leaf(forge: Forge) -> Pair:
    return forge.leaf(ips=["10.0.0.7", "fd00::7"])
