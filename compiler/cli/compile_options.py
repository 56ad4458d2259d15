"""The flags of `pared compile`, apart from what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import DATA, MODEL, OUTPUT

PRECISION = "Precision and accuracy"
RECIPE = "Recipe and pipeline"
DEBUG = "Looking inside"

Fallback = Literal["error", "cpu"]
Criterion = Literal["magnitude", "wanda", "wanda-dsnot", "sparsegpt", "datafree"]
Shrink = Literal["lowrank", "channels"]

Model = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", metavar="M.onnx", help="The model: .onnx, .nir or lava .net.", rich_help_panel=MODEL
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Device to compile for, see `pared targets`, or a target file; default cpu.",
        rich_help_panel=MODEL,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NODE",
        help="Node name or regular expression (full match) to leave in float; repeatable.",
        rich_help_panel=PRECISION,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="int8, int8-dynamic, int8-datafree, w8 (weights only), w4a8, w4a8-dynamic, b2 (binary bases), "
        "fp16 and bf16 (GPUs), ...; default: float.",
        rich_help_panel=PRECISION,
    ),
]  # fmt: skip
Sparsity = Annotated[
    float | None,
    typer.Option(
        metavar="0..1",
        help="Share of weights to set to zero; with calibration data the others make up for them.",
        rich_help_panel=PRECISION,
    ),
]
PruneCriterion = Annotated[
    Criterion | None,
    typer.Option(
        metavar="NAME",
        help="What makes a weight important: magnitude, wanda, wanda-dsnot, sparsegpt (default with "
        "calibration data, else magnitude); datafree: whole channels.",
        rich_help_panel=PRECISION,
    ),
]
PrunePattern = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="2:4 and the like (N of M stay), 16x1 (blocks), shared32 (2:4 for 32 outputs at once); "
        "default: single weights.",
        rich_help_panel=PRECISION,
    ),
]
MaxMacs = Annotated[
    float | None,
    typer.Option(
        metavar="0..1",
        help="Share of the multiply-accumulates to keep, by lower rank or fewer channels (--shrink).",
        rich_help_panel=PRECISION,
    ),
]
MaxParams = Annotated[
    float | None,
    typer.Option(
        metavar="0..1", help="Share of the parameters to keep, in the same way.", rich_help_panel=PRECISION
    ),
]
ShrinkBy = Annotated[
    Shrink | None,
    typer.Option(
        "--shrink",
        metavar="HOW",
        help="How budgets are met: lowrank: chains of lower rank (default); channels: whole channels go.",
        rich_help_panel=PRECISION,
    ),
]
CalibData = Annotated[
    Path | None,
    typer.Option(
        "--calib-data",
        metavar="C.npz",
        help="Calibration samples: one array per input, first axis = samples (.npz or a folder of .npy).",
        rich_help_panel=DATA,
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option(
        metavar="T.npz",
        help="Labelled samples for --max-drop; labels in an array `labels`.",
        rich_help_panel=DATA,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="Largest allowed loss of the metric, in points; layers that cost more stay as they are.",
        rich_help_panel=PRECISION,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="top1, auc, mse, cosine or MODULE:FUNCTION; default: chosen by the data.",
        rich_help_panel=PRECISION,
    ),
]
Force = Annotated[
    bool | None,
    typer.Option(
        "--force/--no-force",
        help="Keep the asked precision although float measures faster here.",
        rich_help_panel=PRECISION,
    ),
]
FallbackOption = Annotated[
    Fallback | None,
    typer.Option(help="What to do with nodes the target refuses; default error.", rich_help_panel=MODEL),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads per inference, measured and run; default 1.", rich_help_panel="Engine"),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Engine to use without measuring others, e.g. ort or openvino; default: the fastest.",
        rich_help_panel="Engine",
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Option of the engine, over the target's, e.g. latency_cutoff=2; repeatable.",
        rich_help_panel="Engine",
    ),
]
OptLevel = Annotated[
    int | None,
    typer.Option(
        "-O",
        "--opt-level",
        min=0,
        max=3,
        metavar="0..3",
        help="0 as written, 1 exact clean-up, 2 also folds and fuses (default), 3 spends more on accuracy.",
        rich_help_panel=RECIPE,
    ),
]
Pipeline = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Passes to run, e.g. 'canonicalize,quantize{bits=8}'; see `pared passes`.",
        rich_help_panel=RECIPE,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="R.yaml", help="Recipe with these choices; flags win over it.",
        rich_help_panel=RECIPE,
    ),
]  # fmt: skip
SaveConfig = Annotated[
    Path | None,
    typer.Option(metavar="R.yaml", help="Write the resolved recipe there.", rich_help_panel=RECIPE),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed of every random choice; default 0.", rich_help_panel=RECIPE)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Do everything but write the artifact; no -o needed.", rich_help_panel=DEBUG
    ),
]
PrintPipeline = Annotated[
    bool,
    typer.Option(
        "--print-pipeline", help="Print the resolved pipeline text and stop.", rich_help_panel=DEBUG
    ),
]
VerifyEach = Annotated[
    bool,
    typer.Option(
        "--verify-each", help="Full check of the graph after every pass (slower).", rich_help_panel=DEBUG
    ),
]
DumpIr = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Write the model there after import and every pass.", rich_help_panel=DEBUG
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="OUT", help="Artifact folder; an older artifact there is replaced at once.",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
