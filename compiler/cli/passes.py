"""`pared passes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import options, render
from .outcome import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..pass_docs import PassCatalog, PassDoc
    from ..records import Json


def passes(as_json: options.Json = False, quiet: options.Quiet = False) -> Outcome:
    """List the passes and macros of `--pipeline` with their options.

    [bold]Example:[/bold]  pared compile -m M.onnx --pipeline "canonicalize,quantize{bits=8}" -o OUT
    """
    from ..pass_docs import pass_catalog

    catalog = pass_catalog()
    return Outcome(catalog, lambda: show(catalog), as_json, quiet)


def show(catalog: PassCatalog) -> RenderableType:
    """Return the view of a catalogue: passes, their options, macros."""
    macros = [(m.name, m.pipeline) for m in catalog.macros]
    return render.page(
        *(_pass(doc) for doc in catalog.passes),
        render.section("Macros", render.facts(macros)) if macros else None,
    )


def _pass(doc: PassDoc) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    title = Text.assemble((doc.name, "bold"), (f"  {doc.effect}", "dim"))
    rows = [(f"{o.name}={_text(o.default)}", o.type) for o in doc.options]
    body: list[RenderableType] = [Text(doc.summary)]
    if rows:
        body.append(render.facts(rows))
    return Group(title, Padding(Group(*body), (0, 0, 0, 2)))


def _text(default: Json) -> str:
    """Write a default as pipeline text does."""
    words = {None: "null", True: "true", False: "false"}
    return words[default] if default is None or isinstance(default, bool) else str(default)
