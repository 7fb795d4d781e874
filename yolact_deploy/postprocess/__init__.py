"""Head outputs to detections on the CPU in NumPy: decoding, the three kinds of NMS, mask assembly and COCO RLE; never imports torch."""

from __future__ import annotations

from yolact_deploy.postprocess.decoding import decode_boxes, pixel_boxes, softmax
from yolact_deploy.postprocess.masks import crop_probabilities, mask_rles, rles_from_probabilities
from yolact_deploy.postprocess.selection import Selection, cross_class_fast_nms, fast_nms, select, traditional_nms
from yolact_deploy.postprocess.settings import PostprocessSettings

__all__ = [
    "PostprocessSettings",
    "Selection",
    "crop_probabilities",
    "cross_class_fast_nms",
    "decode_boxes",
    "fast_nms",
    "mask_rles",
    "pixel_boxes",
    "rles_from_probabilities",
    "select",
    "softmax",
    "traditional_nms",
]
