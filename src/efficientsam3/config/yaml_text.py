"""YAML as users write it, read within bounds: a few hundred bytes can otherwise nest, or expand, without end."""

from typing import Any

import yaml

from efficientsam3.runtime.request import shorten

_DEEPEST = 20  # lists and sections within each other
_MOST_VALUES = 10_000  # values, those that aliases repeat included


class _Loader(yaml.SafeLoader):
    """The safe one; but a date is text, since a folder may be called 2026-11-28."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """As PyYAML, which otherwise lets the last of two equal keys replace the first, a whole section at worst."""
        node = super().compose_mapping_node(anchor)
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in names:
                    problem = f"{shorten(key.value, 50)} stands here twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                names.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """As PyYAML, except that a value such as 0b_ is named with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{shorten(str(node.value), 50)} cannot be read as {kind} ({shorten(str(error), 100)})"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds.

    Raises:
        yaml.YAMLError: it is not YAML, or too much of it.
    """
    _check_bounds(text)
    return yaml.load(text, _Loader)


def _check_bounds(text: str) -> None:
    """Count values without making them; an alias counts as much as what it repeats."""
    counts = [0]  # of each open list or section, within the document
    anchors: dict[str, int] = {}
    open_anchors: list[str | None] = []
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            open_anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            count = counts.pop()
            if (anchor := open_anchors.pop()) is not None:
                anchors[anchor] = count
            counts[-1] += count
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor is not None:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                _refuse(f"*{event.anchor} is part of what it repeats", event)
            counts[-1] += anchors.get(event.anchor or "", 1)
        if len(counts) - 1 > _DEEPEST:
            _refuse(f"more than {_DEEPEST} lists or sections within each other", event)
        if sum(counts) > _MOST_VALUES:
            _refuse(f"more than {_MOST_VALUES} values, counting what aliases repeat", event)


def _refuse(problem: str, event: Any) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
