"""A layer of ours in hls4ml: thresholds in a table, for requantizations that no line equals.

Eight-bit codes of float scales are such: float32 arithmetic moves single thresholds by one accumulator step.
The layer counts the thresholds of its channel by bisection, one comparison per bit of the code.
"""

from __future__ import annotations

import functools
from pathlib import Path

KIND = "ParedThresholds"
_HEADER = "pared_thresholds.h"
_STREAM = """
template <class data_T, class res_T, typename CONFIG_T>
void pared_thresholds(hls::stream<data_T> &data, hls::stream<res_T> &res,
                      const typename CONFIG_T::threshold_t table[CONFIG_T::n_filt << CONFIG_T::bits]) {
Pixels:
    for (unsigned i = 0; i < CONFIG_T::n_in / data_T::size; i++) {
        #pragma HLS PIPELINE
        data_T in = data.read();
        res_T out;
        for (unsigned j = 0; j < data_T::size; j++) {
            #pragma HLS UNROLL
            out[j] = pared_count<typename data_T::value_type, CONFIG_T>(in[j], table, j % CONFIG_T::n_filt);
        }
        res.write(out);
    }
}
"""
_SOURCE = """#ifndef PARED_THRESHOLDS_H_
#define PARED_THRESHOLDS_H_

#include "nnet_common.h"
#include "nnet_helpers.h"

namespace nnet {

struct pared_thresholds_config {
    static const unsigned n_in = 1;
    static const unsigned n_filt = 1;
    static const unsigned bits = 1;
};

// How many of the row's ascending thresholds x reaches, at most 2^bits - 1.
template <class data_T, typename CONFIG_T>
unsigned pared_count(data_T x, const typename CONFIG_T::threshold_t table[CONFIG_T::n_filt << CONFIG_T::bits],
                     unsigned row) {
    #pragma HLS INLINE
    unsigned count = 0;
    for (int bit = CONFIG_T::bits - 1; bit >= 0; bit--) {
        #pragma HLS UNROLL
        unsigned next = count + (1u << bit);
        if (x >= table[(row << CONFIG_T::bits) + next - 1])
            count = next;
    }
    return count;
}

template <class data_T, class res_T, typename CONFIG_T>
void pared_thresholds(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_in],
                      const typename CONFIG_T::threshold_t table[CONFIG_T::n_filt << CONFIG_T::bits]) {
    #pragma HLS PIPELINE II=CONFIG_T::reuse_factor
    for (unsigned i = 0; i < CONFIG_T::n_in; i++) {
        #pragma HLS UNROLL
        res[i] = pared_count<data_T, CONFIG_T>(data[i], table, i % CONFIG_T::n_filt);
    }
}
STREAM
} // namespace nnet

#endif
"""
_CONFIG = """struct config{index} : nnet::pared_thresholds_config {{
    static const unsigned n_in = {n_in};
    static const unsigned n_filt = {n_filt};
    static const unsigned bits = {bits};
    static const unsigned reuse_factor = {reuse};
    typedef {threshold_t.name} threshold_t;
}};
"""
_CALL = "nnet::pared_thresholds<{input_t}, {output_t}, {config}>({input}, {output}, {table});"


def write_header(folder: Path, *, streams: bool) -> None:
    """Write the layer's C++ into a project; `streams` where it has hls::stream."""
    text = _SOURCE.replace("STREAM", _STREAM if streams else "")
    (folder / "firmware" / "nnet_utils" / _HEADER).write_text(text)


@functools.cache
def register(backend: str) -> None:
    """Tell hls4ml of the layer, once per backend."""
    from hls4ml.backends import get_backend
    from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate
    from hls4ml.model.attributes import Attribute, TypeAttribute, WeightAttribute
    from hls4ml.model.layers import Layer, register_layer

    class ParedThresholds(Layer):  # type: ignore[misc]  # hls4ml is untyped
        """Counts thresholds."""

        _expected_attributes = (
            Attribute("n_in"), Attribute("n_filt"), Attribute("bits"), WeightAttribute("threshold"),
            TypeAttribute("threshold"),
        )  # fmt: skip

        def initialize(self) -> None:
            """Add the result and the table."""
            self.add_output_variable(self.get_input_variable().shape)
            self.add_weights_variable(name="threshold", var_name="t{index}")

    class Config(LayerConfigTemplate):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(ParedThresholds)

        def format(self, node: Layer) -> str:
            return _CONFIG.format(**self._default_config_params(node))

    class Call(FunctionCallTemplate):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(ParedThresholds, include_header=[f"nnet_utils/{_HEADER}"])

        def format(self, node: Layer) -> str:
            table = node.get_weights("threshold").name
            return _CALL.format(**self._default_function_params(node), table=table)

    register_layer(KIND, ParedThresholds)
    get_backend(backend).register_template(Config)
    get_backend(backend).register_template(Call)
