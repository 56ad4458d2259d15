"""A BERT-like encoder: engine `native` beside onnxruntime and OpenVINO in the same interleaved run.

PARED_DATA=… python -m pared.bench.cpu.encoder [--seconds 6]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ..encoder import encoder
from ..meter import pinned
from ..results import Page
from .models import HEADINGS, ROUNDS, Case, measure

ABOUT = f"""`python -m pared.bench.cpu.encoder`. `bench/encoder.py`: 4 layers, width 256, 4 heads, 128
positions, 436 million multiply-accumulates, random weights. Batch 1, one pinned core, one thread,
{ROUNDS} rounds in turn, medians of wall time; ratios are medians of the ratios of each round, above 1 means
that native is faster. int8: quantized by pared, statically, per channel; onnxruntime and OpenVINO run the
same graph; OpenVINO's float computes in float32. Every native library passed pared's verification.
"""


def main() -> None:
    """Measure both precisions and write the page."""
    parser = argparse.ArgumentParser(description="a transformer encoder: native beside its peers")
    parser.add_argument("--seconds", type=float, default=6.0, help="per precision")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    page = Page(given.output / "native_encoder.md", "A transformer encoder", ABOUT, HEADINGS)
    page.remark(
        "Of the roof of one core (58 and 233 GMAC/s): see the time in C; 436 MMAC take 7.5 and 1.9 ms there. "
        "Biases are int32 and added to the sums, so that onnxruntime makes one QGemm of each linear layer; "
        "with a quantizer between product and bias it took 14.3 ms, OpenVINO 4.2 and native 2.8, and the "
        "SQNR of the output was 32.8 dB instead of 33.8 (16 random inputs)."
    )
    page.remark(
        "Against the reference native's int8 values are equal until a float value lies at a tie: of four "
        "random inputs one had no difference at all, one a single one in the last GELU (-1.500000 steps), "
        "and in one it began at a LayerNormalization's 46.500005 steps: 1, 18, 884, 3413, 4634 of 32768 "
        "values behind the LayerNormalizations that followed, each by one step."
    )
    with pinned(1), tempfile.TemporaryDirectory(prefix="pared-bench-") as folder:
        for precision in ("float", "int8"):
            case = Case(f"encoder, {precision}", encoder(), precision)
            measure(case, page, given.seconds, Path(folder) / precision)


if __name__ == "__main__":
    main()
