"""Pipeline text: `canonicalize,quantize{bits=4 range=mse}` parses to passes and prints back.

Grammar: passes separated by commas; options in braces, separated by blanks, as `key=value`. A value is a
number, `true`, `false`, `null`, a bare word, or a double-quoted string. Macros stand for a whole text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from .errors import PipelineError, nearest
from .pass_api import Pass, PassTable

Scalar: TypeAlias = "bool | int | float | str | None"

_STEP = re.compile(
    r"\s*(?P<name>[a-z0-9][a-z0-9-]*)\s*(?:\{(?P<options>(?:[^{}\"]|\"[^\"]*\")*)\})?\s*(?P<end>,|$)"
)
_OPTION = re.compile(r"\s*(?P<key>[a-z_][a-z0-9_]*)=(?P<value>\"[^\"]*\"|[^\s{},\"=]+)(?=\s|$)")
_WORDS: Mapping[str, Scalar] = {"true": True, "false": False, "null": None}


def parse_pipeline(text: str, table: PassTable, macros: Mapping[str, str]) -> list[Pass]:
    """Return the configured passes of a pipeline text, macros expanded.

    Raises:
        PipelineError: on bad syntax, an unknown pass or option (with the nearest valid names), or a value
            that the pass does not take.
    """
    passes: list[Pass] = []
    for name, options in _steps(text):
        if name in macros:
            if options:
                raise PipelineError("pipeline-option", f"macro {name!r} takes no options, got {options!r}")
            passes += parse_pipeline(macros[name], table, macros)
        else:
            passes.append(_build(name, options, table, macros))
    return passes


def print_pipeline(passes: Sequence[Pass]) -> str:
    """Return the text of configured passes; options at their defaults are left out."""
    return ",".join(print_pass(p) for p in passes)


def print_pass(p: Pass) -> str:
    """Return one pass as text.

    >>> from dataclasses import dataclass
    >>> from typing import ClassVar
    >>> @dataclass(frozen=True)
    ... class Prune:
    ...     name: ClassVar[str] = "prune"
    ...     sparsity: float = 0.5
    ...     per_row: bool = False
    >>> print_pass(Prune(sparsity=0.9))
    'prune{sparsity=0.9}'
    """
    options = [
        f"{f.name}={_print_value(getattr(p, f.name))}"
        for f in dataclasses.fields(p)  # type: ignore[arg-type]  # passes are frozen dataclasses
        if getattr(p, f.name) != f.default
    ]
    return f"{p.name}{{{' '.join(options)}}}" if options else p.name


def _steps(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while text.strip() and position <= len(text):
        match = _STEP.match(text, position)
        if match is None:
            place = text[position : position + 30]
            raise PipelineError(
                "pipeline-syntax",
                f"pipeline text is not understood at {place!r}",
                "write name{key=value key=value},name2",
            )
        yield match["name"], match["options"] or ""
        if not match["end"]:
            return
        position = match.end()


def _build(name: str, options: str, table: PassTable, macros: Mapping[str, str]) -> Pass:
    if name not in table:
        raise PipelineError("unknown-pass", f"unknown pass {name!r}", nearest(name, [*table, *macros]))
    cls = table[name]()
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # as above
    values = dict(_options(name, options))
    for key in values:
        if key not in fields:
            raise PipelineError(
                "unknown-option", f"pass {name!r} has no option {key!r}", nearest(key, sorted(fields))
            )
    return _checked(cls, values)


def _options(name: str, text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while text[position:].strip():
        match = _OPTION.match(text, position)
        if match is None:
            raise PipelineError(
                "pipeline-syntax",
                f"options of {name!r} are not understood at {text[position:].strip()!r}",
                "write key=value",
            )
        yield match["key"], match["value"]
        position = match.end()


def _checked(cls: type[Pass], texts: Mapping[str, str]) -> Pass:
    """Build the pass with values validated against the annotations of its fields."""
    from pydantic import TypeAdapter, ValidationError

    values = {key: _parse_value(text) for key, text in texts.items()}
    try:
        built = TypeAdapter(cls).validate_python(values)
    except (ValidationError, ValueError) as err:
        raise PipelineError("bad-option", f"pass {cls.name!r}: {_first_line(err)}") from err
    return built


def _first_line(err: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(err, ValidationError):
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"option {place}={first.get('input')!r}: {first['msg']}" if place else str(first["msg"])
    return str(err)


def _parse_value(text: str) -> Scalar:
    if text.startswith('"'):
        return text[1:-1]
    if text in _WORDS:
        return _WORDS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _print_value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    bare = re.fullmatch(r"[^\s{},\"=]+", text) and (not isinstance(value, str) or _parse_value(text) == text)
    return text if bare else json.dumps(text, ensure_ascii=False)
