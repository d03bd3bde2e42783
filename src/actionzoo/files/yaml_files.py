"""Untrusted YAML: mappings of plain values, within bounds. Ambiguous YAML is refused, not guessed at."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from .text import read_text

MAX_BYTES = 4 * 2**20
"""The shipped params.yaml has 36 kB."""

MAX_DEPTH = 40

MAX_VALUES = 200_000
"""With each alias (*name) counted as what it stands for. The shipped params.yaml has 2,000."""

MAX_DIGITS = 18
"""Of a whole number."""


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """The file's sections: dicts with text as keys, lists, texts, numbers, booleans and None.

    Raises UserError, which ends with `remedy` where the file cannot be read at all: for aliases that
    make a short file a huge one, or stand inside of themselves; for keys that stand twice in a section; for nesting
    beyond MAX_DEPTH.
    """
    text = read_text(path, remedy, MAX_BYTES)
    try:
        raw = yaml.load(text, _Loader)  # _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path} is no YAML that is read: {place}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is no YAML that is read: {' '.join(str(error).split())[:200]}") from None
    except (LookupError, TypeError, AttributeError) as error:  # PyYAML, where a tag does not fit its value: !!bool x
        raise UserError(f"{path} is no YAML that is read: a tag (!!…) does not fit its value, {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold sections, found {type(raw).__name__}")
    return raw


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _fault(mark, f"more than {MAX_DEPTH} levels, one inside the other")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_aliases(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key.start_mark, "a key must be a word")
            if key.value in lines:
                raise _fault(
                    key.start_mark, f"the key {key.value[:100]!r} is there already, in line {lines[key.value]}"
                )
            lines[key.value] = key.start_mark.line + 1
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise _fault(node.start_mark, f"a number of more than {MAX_DIGITS} digits")
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


def _check_aliases(root: yaml.Node) -> None:
    """Raises MarkedYAMLError for an alias of what it stands in, and for aliases that make too many values."""
    sizes: dict[int, int] = {}

    def measure(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise _fault(node.start_mark, "an alias (*name) stands inside of what it means")
        if id(node) not in sizes:
            if len(above) > MAX_DEPTH:
                raise _fault(node.start_mark, f"more than {MAX_DEPTH} levels, one inside the other")
            inner = above | {id(node)}
            match node:
                case yaml.MappingNode():
                    children = [child for pair in node.value for child in pair]
                case yaml.SequenceNode():
                    children = node.value
                case _:
                    children = []
            sizes[id(node)] = 1 + sum(measure(child, inner) for child in children)
        if sizes[id(node)] > MAX_VALUES:
            raise _fault(node.start_mark, f"more than {MAX_VALUES} values, by aliases (*name) of aliases")
        return sizes[id(node)]

    measure(root, frozenset())


def _fault(mark: yaml.Mark, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
