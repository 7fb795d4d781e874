"""GPU post-processing on a stand-in for NVIDIA's driver library, whose kernels run on the CPU; the tests run it in another process."""

from __future__ import annotations

import contextlib

import numpy as np

from tests.engines.cuda.kernel_runs import Runner, class_list
from tests.engines.cuda.test_postprocessor import random_heads
from tests.helpers.host_driver import HostDriver
from tests.helpers.stub_cuda import launches
from yolact_deploy.engines.cuda import open_driver
from yolact_deploy.engines.cuda.arrays import DeviceArray, DeviceView
from yolact_deploy.engines.cuda.heads import Heads
from yolact_deploy.engines.cuda.postprocessor import Found, Postprocessor
from yolact_deploy.engines.cuda.workspace import HeadShapes


def post_processing_gives_what_it_gives_without_a_queue() -> None:
    """All kernels of the package in streams that run as late as CUDA allows: what no synchronisation orders shows."""
    driver, host = open_driver(), HostDriver()
    heads, sizes, classes = random_heads(0, batch=2), [(50, 40), (31, 33)], class_list(4)
    wanted = [each.detections for each in Runner(host, host.load_module(host.image)).run(heads, sizes)]
    shapes = HeadShapes(heads.boxes.shape[1], heads.scores.shape[2], *heads.prototypes.shape[1:])
    with contextlib.ExitStack() as release:
        stream = release.enter_context(driver.create_stream())
        arrays = []
        for given in heads.arrays():
            buffer = release.enter_context(driver.allocate(given.nbytes))
            driver.copy_to_device(buffer.pointer, np.ascontiguousarray(given), stream)
            arrays.append(DeviceArray(buffer.pointer, given.shape, given.dtype, 0, buffer))
        module = release.enter_context(driver.load_module(b"STUB 89"))
        post = release.enter_context(Postprocessor(shapes, batch=2, driver=driver, module=module))
        found = post(*(DeviceView(array.pointer, array.shape, array.dtype, array, stream) for array in arrays), sizes)
        assert isinstance(found, Found)
        for each, truth in zip(found.detections(classes), wanted, strict=True):
            assert each.counts == truth.counts
            np.testing.assert_array_equal(each.scores, truth.scores)
        post.set_pictures(sizes[::-1], 2)
        swapped = Heads(*arrays)
        with driver.capture(stream, lambda: post.enqueue(swapped, stream)) as graph:
            for turned in (True, False):
                post.set_pictures(sizes[::-1] if turned else sizes, 2)
                graph.launch(stream)
                stream.synchronize()
                counts = [each.counts for each in post.detections(2, classes)]
                assert (counts == [each.counts for each in wanted]) is not turned
    assert len({name for name, *_ in launches()}) > 5
