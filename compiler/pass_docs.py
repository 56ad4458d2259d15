"""The catalogue of passes: what each does and which options it takes, read from the passes themselves."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from .pass_api import Effect, Pass, PassTable
from .records import Json, to_json
from .registry import MACROS, PASSES


@dataclass(frozen=True)
class OptionDoc:
    """One option of a pass: name, type and default as they are written in pipeline text."""

    name: str
    type: str
    default: Json


@dataclass(frozen=True)
class PassDoc:
    """One pass: `summary` is the first line of its docstring, `description` the whole of it."""

    name: str
    effect: Effect
    summary: str
    description: str
    options: tuple[OptionDoc, ...]


@dataclass(frozen=True)
class MacroDoc:
    """A short name for a pipeline text."""

    name: str
    pipeline: str


@dataclass(frozen=True)
class PassCatalog:
    """All passes and macros, by name."""

    passes: tuple[PassDoc, ...]
    macros: tuple[MacroDoc, ...]


def pass_catalog(table: PassTable = PASSES, macros: Mapping[str, str] = MACROS) -> PassCatalog:
    """Return the documentation of every pass and macro, sorted by name."""
    return PassCatalog(
        tuple(_document(table[name]()) for name in sorted(table)),
        tuple(MacroDoc(name, macros[name]) for name in sorted(macros)),
    )


def _document(cls: type[Pass]) -> PassDoc:
    text = inspect.getdoc(cls) or ""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # passes are frozen dataclasses
    choices = tuple(OptionDoc(f.name, type_text(hints[f.name]), _default(f)) for f in fields)
    return PassDoc(cls.name, cls.effect, text.partition("\n")[0], text, choices)


def _default(field: dataclasses.Field[object]) -> Json:
    if field.default is not dataclasses.MISSING:
        return to_json(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return to_json(field.default_factory())
    return None


def type_text(hint: object) -> str:
    """Return an annotation as a user writes values of it.

    >>> type_text(typing.Literal[2, 4]), type_text(bool), type_text(int | None)
    ('2 | 4', 'true | false', 'integer | null')
    """
    if hint is bool:
        return "true | false"
    if hint is type(None):
        return "null"
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(str(value) for value in parts)
    if origin is typing.Annotated:
        return type_text(parts[0])
    if parts and origin is not tuple:  # a union, spelled `X | None` or `Optional[X]`
        return " | ".join(type_text(part) for part in parts)
    names = {int: "integer", float: "number", str: "text"}
    return names.get(hint) or getattr(hint, "__name__", str(hint))  # type: ignore[call-overload,no-any-return]
