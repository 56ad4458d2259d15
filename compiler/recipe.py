"""The recipe: every choice of a compilation in one declarative, serialisable record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import PipelineError, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

COMMAND_LINE = "command line"
# Keys that the command line does not spell as themselves.
_FLAGS = {
    "calibration": "--calib-data",
    "opt_level": "-O",
    "shapes": "--shape",
    "engine_options": "--engine-option",
}


class Recipe(BaseModel):
    """What to compile and how. `-c recipe.yaml` reads it, `--save-config` writes it resolved.

    Attributes:
        model: path of the ONNX file; None when the model came from memory.
        target: name of a target or path of a target file.
        precision: `int8`, `int8-dynamic`, `w<bits>`, `w<bits>a<bits>`, `w4a8-dynamic`, `b<bases>`,
            `ternary`; None keeps float.
        sparsity: share of weights to prune, 0..1; None prunes none unless a pattern is given.
        prune_criterion: None: sparsegpt with calibration data, magnitude without.
        prune_pattern: `2:4`, `16x1`, `shared32`, ...; None: unstructured.
        max_macs, max_params: share of multiply-accumulates and of parameters to keep.
        shrink: how budgets are met: `lowrank` (None) or `channels`.
        pipeline: pipeline text; None derives it from what is asked above and `opt_level`.
        opt_level: 0..3 as in -O0..-O3.
        shapes: input name -> dimensions that replace symbolic ones.
        calibration: path of calibration data (.npz or a folder of .npy).
        test_data: path of labelled data for `max_drop`.
        metric: `top1`, `auc`, ... or `module:function`; None chooses by the data.
        max_drop: largest allowed loss of the metric, in points.
        exclude: node names or regular expressions left in float.
        seed: for every random choice.
        force: keep the asked precision although float is faster.
        fallback: what to do with nodes that the target refuses.
        threads: threads per inference, measured and run.
        engine: engine to use; None measures the candidates and keeps the fastest that verifies.
        engine_options: name -> value, over those of the target.
        choice: candidate to keep without measuring; a rebuild sets it to what was measured before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    target: str = "cpu"
    precision: str | None = None
    sparsity: float | None = Field(default=None, ge=0, le=1)
    prune_criterion: Literal["magnitude", "wanda", "wanda-dsnot", "sparsegpt", "datafree"] | None = None
    prune_pattern: str | None = None
    max_macs: float | None = Field(default=None, gt=0, le=1)
    max_params: float | None = Field(default=None, gt=0, le=1)
    shrink: Literal["lowrank", "channels"] | None = None
    pipeline: str | None = None
    opt_level: int = Field(default=2, ge=0, le=3)
    shapes: dict[str, tuple[int | str, ...]] = Field(default_factory=dict)
    calibration: str | None = None
    test_data: str | None = None
    metric: str | None = None
    max_drop: float | None = Field(default=None, ge=0)
    exclude: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)
    force: bool = False
    fallback: Literal["error", "cpu"] = "error"
    threads: int = Field(default=1, ge=1)
    engine: str | None = None
    engine_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    choice: str | None = None

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a YAML recipe; relative paths in it are relative to the file.

        Raises:
            PipelineError: unreadable file, bad YAML, unknown key or bad value; names file and key.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
            raise PipelineError(
                "recipe-unreadable", f"{path}: {_one_line(err)}", "give a YAML file of key: value"
            ) from err
        if not isinstance(raw, dict):
            raise PipelineError(
                "recipe-unreadable",
                f"{path}: expected key: value pairs, found {type(raw).__name__}",
                "`pared compile --save-config R.yaml` writes one",
            )
        return cls.parse(raw, place=str(path)).relative_to(path.parent)

    @classmethod
    def parse(cls, raw: dict[str, object], place: str) -> Recipe:
        """Validate raw values; `place` names their source in error texts."""
        fields = list(cls.model_fields)
        for key in raw:
            if key not in fields:
                raise PipelineError("unknown-key", f"{place}: unknown key {key!r}", nearest(str(key), fields))
        try:
            return cls.model_validate(raw)
        except ValidationError as err:
            raise _bad_value(err, place) from err

    def relative_to(self, folder: Path) -> Recipe:
        """Return the recipe with its relative paths taken from `folder`."""
        paths = {key: getattr(self, key) for key in ("model", "calibration", "test_data")}
        joined = {key: str(folder / path) for key, path in paths.items() if path is not None}
        return self.model_copy(update=joined)

    def text(self) -> str:
        """Return the recipe as YAML, every key present."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flag_of(key: str) -> str:
    """Return how the command line spells a key.

    >>> flag_of("max_drop"), flag_of("calibration")
    ('--max-drop', '--calib-data')
    """
    return _FLAGS.get(key) or "--" + key.replace("_", "-")


def _bad_value(err: ValidationError, place: str) -> PipelineError:
    first = err.errors()[0]
    key, *rest = (str(part) for part in first["loc"])
    name = flag_of(key) if place == COMMAND_LINE else ".".join((key, *rest))
    rule = first["msg"].removeprefix("Input ")
    return PipelineError(
        "bad-value", f"{place}: {name} is {first['input']!r}, it {rule}", f"give {name} {_taken(key, first)}"
    )


def _taken(key: str, found: ErrorDetails) -> str:
    """Say what a key takes: its choices, its limits, or its kind."""
    if found["type"] == "literal_error":
        return f"one of {found['ctx']['expected']}"
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    limits = [
        f"{word} {getattr(limit, name):g}"
        for limit in Recipe.model_fields[key].metadata
        for name, word in words.items()
        if hasattr(limit, name)
    ]
    return f"a number of {' and '.join(limits)}" if limits else "a value of that kind"


def _one_line(err: Exception) -> str:
    told = isinstance(err, OSError) and err.strerror
    return told or " ".join(str(err).split())
