"""Where each node of the graph stands. Pure, and the same for the same graph every time.

A *level* says how far something stands from where traffic begins. The namespaces' boxes stand in
columns by their level, and inside a box its nodes do by theirs: so a shop reads from its front door
on the left to its database on the right, and 500 nodes take milliseconds.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

COLUMN: Final = 215
ROW: Final = 78
_SHIFT: Final = 26
"""Every other node of a column stands aside by this, so that a line along it passes others by."""
_GAP_X: Final = 130
_GAP_Y: Final = 96
_TALLEST: Final = 7
"""Nodes of one level beyond which they take another column."""
_SHAPE: Final = 1.9
"""How much wider than tall the whole should be."""
_TOO_WIDE: Final = 2.0
"""How many times wider than that it may become for the sake of a column for each level."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Node:
    id: str
    box: str


def positions(nodes: Sequence[Node], edges: Iterable[tuple[str, str]]) -> dict[str, Size]:
    """Node id to (x, y) in pixels, of the node's middle."""
    box_of = {node.id: node.box or f"\0{node.id}" for node in nodes}
    known = [(a, b) for a, b in edges if a in box_of and b in box_of]
    boxes: dict[str, list[str]] = defaultdict(list)
    for node_id, box in box_of.items():
        boxes[box].append(node_id)
    inside: dict[str, list[list[str]]] = {}
    for box, ids in boxes.items():
        own = [(a, b) for a, b in known if box_of[a] == box_of[b] == box]
        inside[box] = _columns(ids, levels(ids, own))
    sizes = {
        box: (len(columns) * COLUMN, max(map(len, columns)) * ROW)
        for box, columns in inside.items()
    }
    level = levels(sorted(boxes), [(box_of[a], box_of[b]) for a, b in known])
    found: dict[str, Size] = {}
    left = 0
    for column in _box_columns(sizes, level):
        width = max(sizes[box][0] for box in column)
        top = -(sum(sizes[box][1] for box in column) + _GAP_Y * (len(column) - 1)) // 2
        for box in column:
            margin = (width - sizes[box][0]) // 2
            for x, ids in enumerate(inside[box]):
                down = top + (sizes[box][1] - len(ids) * ROW) // 2
                for y, node_id in enumerate(ids):
                    aside = _SHIFT * (y % 2) if len(ids) > 1 else 0
                    found[node_id] = (left + margin + x * COLUMN + aside, down + y * ROW)
            top += sizes[box][1] + _GAP_Y
        left += width + _GAP_X
    return found


def levels(ids: Sequence[str], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The longest way to each from what nothing calls. A circle is cut where a walk from its
    busiest caller comes back."""
    targets: dict[str, list[str]] = {node: [] for node in ids}
    callers: dict[str, int] = dict.fromkeys(ids, 0)
    for source, target in sorted(set(edges)):
        if source != target and source in targets and target in targets:
            targets[source].append(target)
            callers[target] += 1
    walked: list[str] = []
    state: dict[str, str] = {}
    backward: set[tuple[str, str]] = set()
    for start in sorted(ids, key=lambda node: (callers[node] - len(targets[node]), node)):
        waiting = [(start, False)]
        while waiting:
            node, left = waiting.pop()
            if left:
                state[node] = "left"
                walked.append(node)
            elif node not in state:
                state[node] = "entered"
                waiting.append((node, True))
                for target in targets[node]:
                    if state.get(target) == "entered":
                        backward.add((node, target))
                    elif target not in state:
                        waiting.append((target, False))
    found = dict.fromkeys(ids, 0)
    for node in reversed(walked):
        for target in targets[node]:
            if (node, target) not in backward:
                found[target] = max(found[target], found[node] + 1)
    return found


def _columns(ids: Sequence[str], level: Mapping[str, int]) -> list[list[str]]:
    by_level: dict[int, list[str]] = defaultdict(list)
    for node in sorted(ids):
        by_level[level[node]].append(node)
    # Many nodes of one level make a block about as wide as it is tall.
    most = {
        depth: max(_TALLEST, round((len(found) * 1.6) ** 0.5)) for depth, found in by_level.items()
    }
    found = [
        by_level[depth][start : start + most[depth]]
        for depth in sorted(by_level)
        for start in range(0, len(by_level[depth]), most[depth])
    ]
    if len(found) <= max(4, round(_TOO_WIDE * len(ids) ** 0.5)):
        return found
    # Everybody talks to everybody: a column for each level would make one long line of it.
    in_order = [node for column in found for node in column]
    tall = max(2, round((len(ids) * COLUMN / ROW / _SHAPE) ** 0.5))
    return [in_order[start : start + tall] for start in range(0, len(in_order), tall)]


def _box_columns(sizes: Mapping[str, Size], level: Mapping[str, int]) -> list[list[str]]:
    """Boxes of one level below each other, in as many columns as give the whole its shape. Where the
    levels are so many that they would make one long line, several share a column."""
    area = sum((w + _GAP_X) * (h + _GAP_Y) for w, h in sizes.values())
    tallest = max(11 * ROW, int((area / _SHAPE) ** 0.5))
    by_level: dict[int, list[str]] = defaultdict(list)
    for box in sorted(sizes, key=lambda b: (sizes[b][1], b)):
        by_level[level[box]].append(box)
    groups = [by_level[depth] for depth in sorted(by_level)]
    columns = _filled(groups, sizes, tallest)
    wide = sum(max(sizes[box][0] for box in column) + _GAP_X for column in columns)
    if wide > _TOO_WIDE * _SHAPE * tallest:
        columns = _filled([[box for group in groups for box in group]], sizes, tallest)
    return columns


def _filled(
    groups: Iterable[Iterable[str]], sizes: Mapping[str, Size], tallest: int
) -> list[list[str]]:
    columns: list[list[str]] = []
    for group in groups:
        columns.append([])
        used = 0
        for box in group:
            height = sizes[box][1] + _GAP_Y
            if columns[-1] and used + height > tallest:
                columns.append([])
                used = 0
            columns[-1].append(box)
            used += height
    return columns
