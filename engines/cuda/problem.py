"""The kernels' one argument, ``Problem`` of ``kernels/problem.cuh``, as ctypes lays it out."""

from __future__ import annotations

import ctypes

__all__ = ["NO_ROOM", "POINTERS", "Problem"]

NO_ROOM = 0xFFFFFFFF
"""In ``rle_starts``: the arena was full."""

POINTERS = (
    *("boxes", "scores", "coefficients", "prototypes", "pictures"),
    *("candidate_counts", "survivor_counts", "arena_used", "candidates", "best_keys", "ranked", "ranked_counts", "survivors"),
    *("chosen_coefficients", "crops", "probabilities"),
    *("counts", "found_boxes", "found_scores", "mask_scores", "labels", "priors", "rle_starts", "rle_lengths"),
    *("arena", "delivered", "mask_iou", "bits", "removed"),
    *("given_scores", "given_labels", "given_masks", "given_mask_scores"),
)
_NUMBERS = ("batch", "prior_count", "classes", "groups", "prototype_count", "height", "width", "top_k", "max_detections")


class Problem(ctypes.Structure):
    """Field by field the structure of the kernels; ``problem.cuh`` says what each is."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in POINTERS),
        *((name, ctypes.c_int32) for name in _NUMBERS),
        ("score_threshold", ctypes.c_float),
        ("iou_threshold", ctypes.c_float),
        ("half_inputs", ctypes.c_int32),
        ("fill", ctypes.c_int32),
        ("arena_size", ctypes.c_uint32),
        ("bits_stride", ctypes.c_uint32),
        ("input_size", ctypes.c_int32),
    )
