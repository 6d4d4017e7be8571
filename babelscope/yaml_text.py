"""YAML from strangers: no key twice, no bombs, paths beside the file. All configurations are read here.

PyYAML takes the second of two equal keys in silence, builds what a few nested aliases blow up to billions of values,
ends in a RecursionError at some thousand levels, and reads the code of Norwegian as false.

A path that begins with `./` or `../` is one from the folder of the configuration in which it stands, and becomes an
absolute one; any other relative path is one from the working folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_BYTES = 8 * 2**20
MAX_DEPTH = 60
MAX_VALUES = 200_000
"""Keys, values and entries, each alias counted as what it stands for."""


class RefusedYAML(yaml.YAMLError):
    """Well-formed, but not to be built."""


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, its paths anchored.

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
        check_yaml(text)
        content = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        check_strings(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return anchored(content, path.parent)


def read_config(path: Path) -> dict[str, Any] | None:
    """The keys of a configuration, or None without the file.

    Raises:
        ValueError: the file is not YAML with keys.
    """
    content = read_yaml(path) if path.is_file() else None
    if path.is_file() and not isinstance(content, dict):
        raise ValueError(f"{path}: expected a configuration with keys; put it back, or remove the file")
    return content


def anchored(content: Any, folder: str | Path) -> Any:
    """`content` with every string that begins with `./` or `../` as an absolute path, seen from `folder`."""
    if isinstance(content, dict):
        return {key: anchored(value, folder) for key, value in content.items()}
    if isinstance(content, list):
        return [anchored(value, folder) for value in content]
    if isinstance(content, str) and content.startswith(("./", "../")):
        return os.path.abspath(os.path.join(folder, content))
    return content


@cache
def guard_parsers() -> None:
    """Have the parsers of jsonargparse read YAML as `read_yaml` does, and show docstrings of options as help."""
    from jsonargparse import get_loader, set_loader, set_parsing_settings
    from jsonargparse.typing import Path_drw

    plain = get_loader("yaml")  # it reads 1e-3 as a number

    def load(text: str) -> Any:
        check_yaml(text)
        return anchored(plain(text), Path_drw(".").cwd)  # the folder of the file that is being read

    set_loader("yaml", load, (yaml.YAMLError,))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse configurations and options of a command line that must not be built.

    Raises:
        FileNotFoundError, ValueError: see `read_yaml` and `check_strings`; a file is named, which the parser does not.
    """
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c") and (equals or place + 1 < len(arguments)):
            read_yaml(value if equals else arguments[place + 1])
        check_strings(value if equals else argument)


def check_strings(value: Any) -> None:
    """Check all strings in `value` that could be YAML with aliases: jsonargparse parses the strings of options too.

    Raises:
        ValueError: one of them must not be built.
    """
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
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
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RefusedYAML(f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    root = yaml.compose(text, Loader=LOADER)
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
            for entry in node.value:
                _refuse_norway(entry)
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
        _refuse_norway(key)
        if key.value in lines and key.value != "<<":
            raise RefusedYAML(f"line {line}: key {key.value!r} is given twice, first in line {lines[key.value]}")
        lines[key.value] = line


def _refuse_norway(node: yaml.Node) -> None:
    """Refuse `no` and the like among keys and entries, where languages stand and a truth value never does."""
    if node.tag == "tag:yaml.org,2002:bool" and node.value.lower() not in ("true", "false"):
        raise RefusedYAML(
            f"line {node.start_mark.line + 1}: YAML reads {node.value} as a truth value; write '{node.value}'"
        )
