"""The two quantized graphs, written from one set of ranges: for TensorRT, and for ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.errors import ConfigError

from .graph import GraphView, layer_of
from .placement import Placement
from .ranges import Range
from .weights import snapped, weight_integers, weight_scales

__all__ = ["QuantizedWeights", "write_onnxruntime", "write_tensorrt"]

QuantizedWeights = Mapping[str, tuple[NDArray[np.int8], NDArray[np.float32]]]
"""Name of a weight -> its steps, int8 [out, in, kh, kw], and their scales, float32 [out]."""

_LARGEST_BIAS = 2.0**30  # in steps: what the products add to it fits in the other half of an int32


def write_tensorrt(
    view: GraphView,
    placement: Placement,
    ranges: Mapping[str, Range],
    *,
    rounded: QuantizedWeights | None = None,
    biases: Mapping[int, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The graph with symmetric int8 pairs at `placement`: one for each value, and one for each convolution's weights, by output channel.

    Weights stay float32 on their int8 grid behind a pair of their own, which every TensorRT from 8.6 reads; biases have no pair. `rounded`
    replaces the nearest steps, `biases` those of the convolutions with these indices, float32 [out].
    """
    return _Writer(view, placement, ranges, rounded or {}, biases or {}).tensorrt()


def write_onnxruntime(
    view: GraphView,
    placement: Placement,
    ranges: Mapping[str, Range],
    *,
    rounded: QuantizedWeights | None = None,
    biases: Mapping[int, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The graph with uint8 pairs at `placement`, int8 weights by output channel and int32 biases: what QLinearConv is made of."""
    return _Writer(view, placement, ranges, rounded or {}, biases or {}).onnxruntime()


class _Writer:
    """One graph being written: nodes in order, with the pairs behind what makes their values."""

    def __init__(
        self,
        view: GraphView,
        placement: Placement,
        ranges: Mapping[str, Range],
        rounded: QuantizedWeights,
        biases: Mapping[int, NDArray[np.float32]],
    ) -> None:
        self.view, self.placement, self.ranges, self.rounded, self.biases = view, placement, ranges, rounded, biases
        missing = [name for name in placement.pairs if name not in ranges]
        if missing:
            raise ConfigError(f"There is no range for {missing[0]} and {len(missing) - 1} other values.", "Calibrate again with --fresh.")
        self.model = onnx.ModelProto()
        self.model.CopyFrom(view.model)
        self.nodes = list(self.model.graph.node)
        self.before: dict[int, list[onnx.NodeProto]] = {}
        self.behind: dict[int, list[onnx.NodeProto]] = {}
        self.added: dict[str, TensorProto] = {}

    def tensorrt(self) -> onnx.ModelProto:
        zero = self._constant("zero_int8", np.array(0, np.int8))
        for name in self.placement.pairs:
            self._pair(name, self._constant(f"{name}_scale", np.float32(self.ranges[name].scale)), zero)
        for place in self.placement.convolutions:
            node = self.nodes[place]
            weight = node.input[1]
            steps, scales = self._steps(weight)
            zeros = self._constant(f"zeros_int8_{len(scales)}", np.zeros(len(scales), np.int8))
            grid = self._constant(f"{weight}_on_grid", snapped(steps, scales))
            scale = self._constant(f"{weight}_scale", scales)
            stem = f"{layer_of(node.name)}/weight_{place}"
            quantized, dequantized = f"{stem}_quantized", f"{stem}_dequantized"
            self.before[place] = [
                helper.make_node("QuantizeLinear", [grid, scale, zeros], [quantized], f"{stem}/QuantizeLinear", axis=0),
                helper.make_node("DequantizeLinear", [quantized, scale, zeros], [dequantized], f"{stem}/DequantizeLinear", axis=0),
            ]
            node.input[1] = dequantized
            if place in self.biases:
                self._set_bias(node, self._constant(f"{stem}_bias", self.biases[place].astype(np.float32)))
        return self._finished()

    def onnxruntime(self) -> onnx.ModelProto:
        for name in self.placement.pairs:
            scale, zero = self.ranges[name].affine
            zero_name = self._constant(f"zero_uint8_{zero}", np.array(zero, np.uint8))
            self._pair(name, self._constant(f"{name}_scale", np.float32(scale)), zero_name)
        scales_of = self._scales_with_room()
        for place in self.placement.convolutions:
            node = self.nodes[place]
            weight = node.input[1]
            steps, scales = self._steps(weight)
            wider = scales_of[weight]
            if (wider > scales).any():
                steps = weight_integers(snapped(steps, scales), wider)
            zeros = self._constant(f"zeros_int8_{len(wider)}", np.zeros(len(wider), np.int8))
            stem = f"{layer_of(node.name)}/weight_{place}"
            inputs = [self._constant(f"{weight}_steps", steps), self._constant(f"{weight}_scale", wider), zeros]
            self.before[place] = [helper.make_node("DequantizeLinear", inputs, [f"{stem}_dequantized"], f"{stem}/DequantizeLinear", axis=0)]
            node.input[1] = f"{stem}_dequantized"
            self._integer_bias(place, node, wider, stem)
        return self._finished()

    def _scales_with_room(self) -> dict[str, NDArray[np.float32]]:
        """Of each quantized weight the scales, wider where an int32 could not hold a bias in their steps: channels that are nearly dead."""
        found: dict[str, NDArray[np.float32]] = {}
        for place in self.placement.convolutions:
            weight = self.view.nodes[place].input[1]
            scales = found.get(weight, self._steps(weight)[1])
            bias = self._bias(place)
            if bias is not None:
                scales = np.maximum(scales, np.abs(bias) / (np.float64(self._source_scale(place)) * _LARGEST_BIAS)).astype(np.float32)
            found[weight] = scales
        return found

    def _source_scale(self, place: int) -> np.float32:
        return np.float32(self.ranges[self.view.nodes[place].input[0]].affine[0])

    def _bias(self, place: int) -> NDArray[np.float64] | None:
        """float64 [out] of a convolution; None without."""
        old = list(self.view.nodes[place].input)
        if place in self.biases:
            return self.biases[place].astype(np.float64)
        return numpy_helper.to_array(self.view.initializers[old[2]]).astype(np.float64) if len(old) > 2 and old[2] else None

    def _steps(self, weight: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        if weight in self.rounded:
            return self.rounded[weight]
        values = numpy_helper.to_array(self.view.initializers[weight]).astype(np.float32)
        scales = weight_scales(values)
        return weight_integers(values, scales), scales

    def _set_bias(self, node: onnx.NodeProto, name: str) -> None:
        if len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)

    def _integer_bias(self, place: int, node: onnx.NodeProto, scales: NDArray[np.float32], stem: str) -> None:
        """A bias in steps of input scale x weight scale, as QLinearConv adds it."""
        bias = self._bias(place)
        if bias is None:
            return
        steps = scales * self._source_scale(place)
        values = np.rint(bias / steps).astype(np.int32)
        inputs = [self._constant(f"{stem}_bias_steps", values), self._constant(f"{stem}_bias_scale", steps)]
        self.before[place].append(
            helper.make_node("DequantizeLinear", inputs, [f"{stem}_bias"], f"{layer_of(node.name)}/bias_{place}/DequantizeLinear", axis=0)
        )
        self._set_bias(node, f"{stem}_bias")

    def _pair(self, name: str, scale: str, zero: str) -> None:
        """A pair behind what makes `name`; its readers in the placement read the pair, and so does the graph's output of that name."""
        place = self.view.producers.get(name, -1)
        readers = self.placement.pairs[name]
        inside = place >= 0 and self.view.in_network(place)
        path = layer_of(self.view.nodes[place if inside else readers[0][0]].name)  # float16 goes by module, and pairs go with their reader
        source, result = name, f"{name}_dequantized"
        if name in self.view.outputs:
            source, result = f"{name}_float", name
            self._rename(name, source, readers)
        self.behind.setdefault(place, []).extend(
            [
                helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_quantized"], f"{path}/{name}/QuantizeLinear"),
                helper.make_node("DequantizeLinear", [f"{name}_quantized", scale, zero], [result], f"{path}/{name}/DequantizeLinear"),
            ]
        )
        for reader, index in readers:
            self.nodes[reader].input[index] = result

    def _rename(self, name: str, inside: str, readers: tuple[tuple[int, int], ...]) -> None:
        """The float value behind an output's name goes by `inside`, for those that do not read the pair."""
        producer = self.nodes[self.view.producers[name]]
        producer.output[list(producer.output).index(name)] = inside
        for reader, index in self.view.consumers.get(name, ()):
            if (reader, index) not in readers:
                self.nodes[reader].input[index] = inside

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _finished(self) -> onnx.ModelProto:
        ordered = list(self.behind.get(-1, []))
        for place, node in enumerate(self.nodes):
            ordered += [*self.before.get(place, []), node, *self.behind.get(place, [])]
        copies = []
        for node in ordered:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        graph = self.model.graph
        used = {name for node in copies for name in node.input}
        tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(copies)
        graph.initializer.extend([*tensors, *(tensor for tensor in self.added.values() if tensor.name in used)])
        return self.model
