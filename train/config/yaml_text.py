"""YAML from strangers: no key twice, no bombs. Where configurations are read, this is the loader.

PyYAML takes the second of two equal keys in silence, builds what a few nested aliases blow up to billions of values,
and ends in a RecursionError at some thousand levels. `analysis.yaml_text` is the same for the other package, since
neither imports the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 8 * 2**20
MAX_DEPTH = 60
MAX_VALUES = 200_000
"""Keys, values and entries, each alias counted as what it stands for."""


class RefusedYAML(yaml.YAMLError):
    """Well-formed, but not to be built."""


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not text, not YAML, a key given twice, or too large; names the file and where possible the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size / 2**20:.0f} MB are no configuration")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file, so no configuration") from None
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def load_yaml(text: str) -> Any:
    """What `yaml.safe_load` gives, if `check_yaml` has nothing against it."""
    check_yaml(text)
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def check_strings(value: Any) -> None:
    """Check all strings in `value` that could be YAML with aliases: jsonargparse parses the strings of options too.

    Raises:
        ValueError: one of them must not be built.
    """
    if isinstance(value, dict):
        for entry in value.values():
            check_strings(entry)
    elif isinstance(value, list):
        for entry in value:
            check_strings(entry)
    elif isinstance(value, str) and "&" in value and "*" in value:
        try:
            check_yaml(value)
        except RefusedYAML as error:
            raise ValueError(f"{value[:40]}...: {error}") from None
        except yaml.YAMLError:
            pass  # a plain text


def check_yaml(text: str) -> None:
    """Refuse what must not be built.

    Raises:
        RefusedYAML: a key given twice, nested too deep, or too many values.
        yaml.YAMLError: malformed.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RefusedYAML(f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    root = yaml.compose(text, Loader=loader)
    if root is not None:
        _count(root, {}, set())


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values below a node with all aliases written out; checks the keys on the way."""
    if id(node) in above:
        raise RefusedYAML(f"line {node.start_mark.line + 1}: an alias stands inside what it names")
    if id(node) not in known:
        total = 1
        above.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            total += sum(_count(key, known, above) + _count(value, known, above) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(_count(entry, known, above) for entry in node.value)
        above.remove(id(node))
        if total > MAX_VALUES:
            raise RefusedYAML(f"line {node.start_mark.line + 1}: stands for more than {MAX_VALUES:,} values")
        known[id(node)] = total
    return known[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in lines and key.value != "<<":
            raise RefusedYAML(f"line {line}: key {key.value!r} is given twice, first in line {lines[key.value]}")
        lines[key.value] = line
