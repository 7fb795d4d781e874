"""What can be done to a network before and after its weights are rounded: equalization of channels, and correction of biases.

M. Nagel et al., "Data-free quantization through weight equalization and bias correction", arXiv:1906.04721; the scales are those of
G. Xiao et al., "SmoothQuant", arXiv:2211.10438, equation 4, since here weights have a scale a channel and activations one in all.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .graph import GraphView
from .placement import Placement
from .statistics import Statistics
from .writing import QuantizedWeights

__all__ = ["corrected_biases", "equalizable", "equalize"]

_STRENGTH = 0.5  # of equation 4: how much of an activation's spread goes into the weights
_LIMIT = 64.0  # of a channel's factor: what is nearly dead is left nearly alone


def corrected_biases(
    view: GraphView, placement: Placement, weights: QuantizedWeights, statistics: Statistics
) -> dict[int, NDArray[np.float32]]:
    """Biases, float32 [out], of the quantized convolutions by index, that take back the mean error which rounding their weights makes.

    The error of an output channel is ``sum over in, kh, kw of (rounded - weight) x mean of the input channel``; the input's border of
    zeros is neglected. `weights` holds the rounded weights' steps and scales.
    """
    found = {}
    for place in placement.convolutions:
        node = view.nodes[place]
        steps, scales = weights[node.input[1]]
        weight = numpy_helper.to_array(view.initializers[node.input[1]]).astype(np.float64)
        error = steps * scales.astype(np.float64).reshape(-1, 1, 1, 1) - weight
        means = statistics.values[node.input[0]].channel_means
        if error.shape[1] != len(means):
            continue  # grouped
        shift = np.einsum("oihw,i->o", error, means)
        bias = np.zeros(len(weight))
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(view.initializers[node.input[2]]).astype(np.float64)
        found[place] = (bias - shift).astype(np.float32)
    return found


def equalizable(view: GraphView) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    """Groups of (values, weights that make them, weights that read them) whose channels can be scaled without altering any output.

    Such a value comes from a convolution and an activation that commutes with positive factors, and only convolutions read it. Layers that
    several levels share join their values to one group.
    """
    makers: dict[str, list[int]] = {}
    for place, node in enumerate(view.nodes):
        if node.op_type == "Conv":
            makers.setdefault(node.input[1], []).append(place)
    groups = []
    seen: set[str] = set()
    for layer in view.layers.values():
        start = view.result_of(layer.nodes[0])
        if start in seen:
            continue
        group = _closed(view, start, makers)
        if group is not None:
            seen.update(group[0])
            groups.append(group)
    return groups


def _closed(view: GraphView, start: str, makers: dict[str, list[int]]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | None:
    """The group of `start`, closed under shared weights; None where a value in it cannot be scaled."""
    values, made, read = [start], dict[str, None](), dict[str, None]()
    for value in values:
        maker = _maker(view, value)
        readers = view.readers(value)
        if maker is None or value in view.outputs or not readers:
            return None
        made[view.nodes[maker].input[1]] = None
        for reader in readers:
            node = view.nodes[reader]
            if node.op_type != "Conv" or node.input[0] != value or not view.in_network(reader) or node.input[1] not in view.initializers:
                return None
            read[node.input[1]] = None
        beside = [view.result_of(place) for place in makers[view.nodes[maker].input[1]]]
        beside += [view.nodes[place].input[0] for weight in read for place in makers[weight]]
        values += [other for other in dict.fromkeys(beside) if other not in values]
    shared = [view.initializers[name].dims for name in made]
    widths = {dims[0] for dims in shared} | {view.initializers[name].dims[1] for name in read}
    beside_weights = [view.nodes[reader] for bias in _biases(view, made) for reader in view.readers(bias)]
    alone = all(node.op_type == "Conv" and node.input[1] in made for node in beside_weights)
    return (tuple(values), tuple(made), tuple(read)) if len(widths) == 1 and alone and not set(made) & set(read) else None


def _maker(view: GraphView, value: str) -> int | None:
    """The convolution behind an activated value."""
    place = view.producers.get(value)
    if place is None or view.nodes[place].op_type not in ("Relu", "LeakyRelu"):
        return None
    before = view.producers.get(view.nodes[place].input[0])
    if before is None or view.nodes[before].op_type != "Conv" or view.activation_after(before) != place:
        return None
    return before if view.in_network(before) and view.nodes[before].input[1] in view.initializers else None


def equalize(view: GraphView, statistics: Statistics) -> tuple[onnx.ModelProto, int]:
    """A copy of the graph, equal to it but for rounding, whose activations' channels are nearer to each other; and how many were scaled.

    A channel's factor is ``sqrt(largest activation / largest weight that reads it)``, over all values and weights of its group.
    """
    scaled: dict[str, NDArray[np.float32]] = {}

    def of(name: str) -> NDArray[np.float32]:
        if name not in scaled:
            scaled[name] = numpy_helper.to_array(view.initializers[name]).astype(np.float32)
        return scaled[name]

    channels = 0
    for values, made, read in equalizable(view):
        activation = np.max([statistics.values[name].channel_largest for name in values if name in statistics.values], axis=0)
        weight = np.max([np.abs(of(name)).max(axis=(0, 2, 3)) for name in read], axis=0)
        factor = _factors(activation, weight)
        channels += len(factor)
        for name in made:
            scaled[name] = of(name) / factor[:, None, None, None]
        for bias in _biases(view, made):
            scaled[bias] = of(bias) / factor
        for name in read:
            scaled[name] = of(name) * factor[None, :, None, None]
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    for tensor in model.graph.initializer:
        if tensor.name in scaled:
            tensor.CopyFrom(numpy_helper.from_array(scaled[tensor.name].astype(np.float32), tensor.name))
    return model, channels


def _factors(activation: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [C], powers of two, so that scaling rounds nothing; 1 for channels that are dead."""
    alive = (activation > 0) & (weight > 0)
    ratio = np.divide(activation.astype(np.float64), weight, out=np.ones(len(weight)), where=alive)
    factor = ratio**_STRENGTH
    middle = np.exp(np.mean(np.log(factor[alive]))) if alive.any() else 1.0
    factor = np.clip(np.where(alive, factor / middle, 1.0), 1 / _LIMIT, _LIMIT)
    return np.exp2(np.rint(np.log2(factor))).astype(np.float32)


def _biases(view: GraphView, weights: Collection[str]) -> list[str]:
    """Names of the biases that go with these weights, each once."""
    convolutions = [node for node in view.nodes if node.op_type == "Conv" and node.input[1] in weights]
    return list(dict.fromkeys(node.input[2] for node in convolutions if len(node.input) > 2 and node.input[2]))
