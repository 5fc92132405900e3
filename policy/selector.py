"""Which pods a policy selects: a Kubernetes label selector. Pure.

(Kubernetes API, `LabelSelector`: all of `matchLabels` and of `matchExpressions` must hold; an empty
selector selects every pod.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

OPERATORS = frozenset({"In", "NotIn", "Exists", "DoesNotExist"})


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        return (value is not None) == (self.operator == "Exists")


@dataclass(frozen=True, slots=True)
class Selector:
    """All of `requirements`; none: every pod of the namespace."""

    requirements: tuple[Requirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.holds(labels) for requirement in self.requirements)


EVERY_POD = Selector()
