"""Arrays of other libraries by DLPack and __cuda_array_interface__, with capsules made by hand; no GPU is needed."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.host_driver import HostDriver
from yolact_deploy.engines.cuda import arrays
from yolact_deploy.engines.cuda.arrays import DeviceArray, DeviceView, device_array
from yolact_deploy.engines.cuda.driver import Event, Stream
from yolact_deploy.errors import ConfigError, DeviceError

ADDRESS = 0x7F0000001000
CUDA, MANAGED = 2, 13
CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}

Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", ctypes.pythonapi))
get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
get_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


class Producer:
    """An array of another library, in GPU memory that is not there; counts what is done to what it gives out."""

    def __init__(
        self,
        shape: Sequence[int] = (2, 3),
        dtype: Any = np.float32,
        *,
        strides: Sequence[int] | None = None,
        place: tuple[int, int] = (CUDA, 0),
        version: tuple[int, int] | None = (1, 0),
        takes_version: bool = True,
        flags: int = 0,
        offset: int = 0,
        kind: tuple[int, int, int] | None = None,
        no_deleter: bool = False,
    ) -> None:
        dtype = np.dtype(dtype)
        self.place, self.version, self.takes_version = place, version, takes_version
        self.deleted = 0
        self.asked: list[dict[str, Any]] = []
        code, bits, lanes = kind or (CODES[dtype.kind], dtype.itemsize * 8, 1)
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(shape))(*strides)
        self._deleter = Deleter(self._delete)
        self._end = Deleter(self._capsule_ends)
        tensor = arrays._Tensor(ADDRESS, *place, len(shape), code, bits, lanes, self._shape, self._strides, offset)
        deleter = None if no_deleter else ctypes.cast(self._deleter, ctypes.c_void_p)
        self.managed: arrays._Managed | arrays._VersionedManaged = (
            arrays._VersionedManaged(*version, None, deleter, flags, tensor) if version else arrays._Managed(tensor, None, deleter)
        )
        self.name = b"dltensor_versioned" if version else b"dltensor"

    def _delete(self, address: int) -> None:
        assert address == ctypes.addressof(self.managed)
        self.deleted += 1

    def _capsule_ends(self, capsule: int) -> None:
        if is_valid(capsule, self.name):  # not used up
            assert get_pointer_of(capsule, self.name) == ctypes.addressof(self.managed)
            self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, **options: Any) -> object:
        if "max_version" in options and not self.takes_version:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.asked.append(options)
        return new_capsule(ctypes.addressof(self.managed), self.name, ctypes.cast(self._end, ctypes.c_void_p))


def take(value: object, stream: Stream | None = None, **options: Any) -> DeviceArray:
    return device_array(value, device=0, stream=stream, **options)


def interface(**changes: Any) -> Any:
    base = {"shape": (2, 3), "typestr": "<f4", "data": (ADDRESS, False), "strides": None, "version": 3, "stream": None}
    return SimpleNamespace(__cuda_array_interface__={**base, **changes})


@pytest.mark.parametrize("version", [(1, 0), (1, 1), None], ids=["1.0", "1.1", "legacy"])
def test_a_tensor_is_taken_and_given_back_once(version: tuple[int, int] | None) -> None:
    producer = Producer((2, 3), version=version, offset=8)
    array = take(producer)
    assert (array.pointer, array.shape, array.dtype, array.device, array.nbytes) == (ADDRESS + 8, (2, 3), np.dtype(np.float32), 0, 24)
    gc.collect()
    assert producer.deleted == 0
    owner = array.owner
    del array
    assert producer.deleted == 0
    del owner
    assert producer.deleted == 1
    gc.collect()
    assert producer.deleted == 1


def test_a_tensor_without_a_deleter() -> None:
    producer = Producer(no_deleter=True)
    array = take(producer)
    del array
    assert producer.deleted == 0


def test_the_stream_is_told_to_the_producer() -> None:
    producer, old = Producer(), Producer(version=None, takes_version=False)
    with HostDriver().create_stream() as stream:
        take(producer, stream)
        take(old, stream)
        assert producer.asked == [{"stream": stream.handle, "max_version": (1, 1)}]
        assert old.asked == [{"stream": stream.handle}]
        take(producer)
        assert producer.asked[-1]["stream"] == -1
        stream.close()
        with pytest.raises(DeviceError, match="closed"):
            take(producer, stream)


@pytest.mark.parametrize("name", ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
def test_dtypes(name: str) -> None:
    assert take(Producer(dtype=name)).dtype == np.dtype(name)
    assert take(interface(typestr=np.dtype(name).str)).dtype == np.dtype(name)


def test_managed_memory_is_on_the_gpu() -> None:
    assert take(Producer(place=(MANAGED, 0))).pointer == ADDRESS


REFUSED = [
    ({"place": (1, 0)}, r"^The tests Producer is on the CPU, GPU 0 was wanted\. Move it there first\.$"),
    ({"place": (3, 0)}, "is in page-locked host memory, GPU 0 was wanted"),
    ({"place": (10, 0)}, "is on a device of DLPack's kind 10, GPU 0 was wanted"),
    ({"place": (CUDA, 1)}, "is on GPU 1, GPU 0 was wanted"),
    ({"strides": (1, 2)}, r"of shape \(2, 3\) is not contiguous: its strides are \(4, 8\) bytes, \(12, 4\) were wanted"),
    ({"strides": (6, 1)}, "not contiguous"),
    ({"strides": (-3, 1)}, "not contiguous"),
    ({"strides": (0, 1)}, "not contiguous"),
    ({"kind": (4, 16, 1)}, "has the dtype bfloat16, one that NumPy has was wanted"),
    ({"kind": (2, 32, 4)}, "has the dtype float32 x 4, one"),
    ({"kind": (0, 4, 1)}, "has the dtype int4, one"),
    ({"kind": (2, 8, 1)}, "has the dtype float8, one"),
    ({"kind": (17, 6, 1)}, "has the dtype number 17, bits 6, one"),
    ({"version": (2, 0)}, "is given by DLPack 2.0, 1.x is known"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_does_not_fit_is_refused_and_given_back_once(options: dict[str, Any], message: str) -> None:
    producer = Producer(**options)
    with pytest.raises(ConfigError, match=message):
        take(producer)
    gc.collect()
    assert producer.deleted == len(producer.asked)


def test_where_a_tensor_lies_is_read_from_it_too() -> None:
    producer = Producer(place=(CUDA, 1))
    producer.place = (CUDA, 0)
    with pytest.raises(ConfigError, match="is on GPU 1"):
        take(producer)
    gc.collect()
    assert producer.deleted == 1


def test_a_used_capsule_is_refused() -> None:
    producer = Producer()
    capsules = [producer.__dlpack__()]
    again = SimpleNamespace(__dlpack_device__=lambda: (CUDA, 0), __dlpack__=lambda **_: capsules[0])
    array = take(again)
    with pytest.raises(ConfigError, match="a new capsule with a tensor was wanted"):
        take(again)
    capsules.clear()
    del array
    gc.collect()
    assert producer.deleted == 1


def test_read_only_arrays() -> None:
    for value, name in ((Producer(flags=1), "tests Producer"), (interface(data=(ADDRESS, True)), "types SimpleNamespace")):
        assert take(value).pointer == ADDRESS
        with pytest.raises(ConfigError, match=rf"^The {name} is read-only, one that may be written to was wanted\."):
            take(value, writable=True)
    assert take(Producer(), writable=True).pointer == take(interface(), writable=True).pointer == ADDRESS


def test_what_a_library_does_not_give_out_is_told() -> None:
    def refuse(**_: Any) -> None:
        raise BufferError("Can't export tensors\nthat require gradient")

    value = SimpleNamespace(__dlpack_device__=lambda: (CUDA, 0), __dlpack__=refuse)
    with pytest.raises(ConfigError, match=r"is not given out by DLPack: Can't export tensors that require gradient$"):
        take(value)


def test_arrays_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"^The numpy ndarray is on the CPU, GPU 0 was wanted\. Move it there first\.$"):
        take(np.zeros(3))
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(ConfigError, match=r"^The torch Tensor is on the CPU, GPU 0 was wanted\. Move it there first\.$"):
        take(torch.zeros(3))


@pytest.mark.parametrize("value", [[1.0], 7, None, "text", object()], ids=lambda value: type(value).__name__)
def test_what_is_no_array_is_told(value: object) -> None:
    with pytest.raises(TypeError, match=rf"__cuda_array_interface__ \(torch, CuPy, PyCUDA, …\); {type(value).__name__} has neither$"):
        take(value)


def test_a_tensor_of_torch_is_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the GPU's place: the layout of torch's capsules is the one that is read here."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(arrays, "_CUDA", 1)
    monkeypatch.setattr(arrays, "_NOBODY", None)  # the only stream of a tensor on the CPU
    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)[1:]
    array = take(tensor)
    assert (array.pointer, array.shape, array.dtype) == (tensor.data_ptr(), (1, 3, 4), np.dtype(np.float32))
    with pytest.raises(ConfigError, match="not contiguous"):
        take(tensor.transpose(1, 2))
    with pytest.raises(ConfigError, match=r"is not given out by DLPack: .*gradient"):
        take(torch.zeros(2, requires_grad=True))
    with pytest.raises(ConfigError, match="has the dtype bfloat16"):
        take(torch.zeros(2, dtype=torch.bfloat16))
    values = (ctypes.c_float * 12).from_address(array.pointer)
    del tensor
    gc.collect()
    assert list(values) == list(range(12, 24))  # the tensor's memory is held


def test_an_array_of_numpy_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_CUDA", 1)
    monkeypatch.setattr(arrays, "_NOBODY", None)
    given = np.arange(6, dtype=np.int16).reshape(2, 3)
    array = take(given)
    assert (array.pointer, array.shape, array.dtype) == (given.ctypes.data, (2, 3), np.dtype(np.int16))
    fixed = given.copy()
    fixed.flags.writeable = False
    with pytest.raises(ConfigError, match=r"is read-only|is not given out"):  # NumPy without versions gives none out
        take(fixed, writable=True)


# __cuda_array_interface__


def test_an_interface_is_taken() -> None:
    value = interface(strides=(12, 4))
    array = take(value)
    assert (array.pointer, array.shape, array.dtype, array.owner) == (ADDRESS, (2, 3), np.dtype(np.float32), value)
    version_2 = interface()
    del version_2.__cuda_array_interface__["stream"]
    assert take(version_2).pointer == ADDRESS
    assert take(interface(shape=(0, 3), data=(None, False))).pointer == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (4, 8)}, r"The types SimpleNamespace of shape \(2, 3\) is not contiguous"),
        ({"typestr": ">f4"}, "has the typestr '>f4', a number in this machine's byte order was wanted"),
        ({"typestr": "|O8"}, "has the typestr"),
        ({"typestr": "|V4"}, "has the typestr"),
        ({"typestr": "nothing"}, "has the typestr 'nothing'"),
        ({"mask": interface()}, "has a mask, an array without one was wanted"),
    ],
)
def test_an_interface_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take(interface(**changes))


class Waiting(HostDriver):
    """Notes which streams wait for which."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[int, int]] = []

    def borrow_stream(self, foreign: object) -> Stream:
        stream = super().borrow_stream(foreign)
        self.borrowed = stream.handle
        return stream

    def device_of(self, pointer: int) -> int | None:
        return 0  # of addresses that are made up


def test_the_producers_stream_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Waiting()
    with driver.create_stream() as stream:

        def wait(event: Event) -> None:
            driver.waits.append((stream.handle, driver.borrowed))

        monkeypatch.setattr(stream, "wait", wait)
        for producer in (1, 0x5000):
            take(interface(stream=producer), stream, driver=driver)
        assert driver.waits == [(stream.handle, 1), (stream.handle, 0x5000)]
        take(interface(stream=stream.handle), stream)  # its own
        take(interface(stream=0x5000))
        assert len(driver.waits) == 2
        with pytest.raises(ConfigError, match="Give the driver that made the stream"):
            take(interface(stream=0x5000), stream)


# Any shape and strides


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any]]:
    """Shape, strides in elements, and dtype of a view of an array."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = np.dtype(draw(st.sampled_from(["f4", "f2", "u1", "i8"])))
    view = np.zeros(shape, dtype)
    for axis in range(view.ndim):
        if draw(st.booleans()):
            view = np.moveaxis(np.moveaxis(view, axis, 0)[:: draw(st.sampled_from([1, 1, 2, -1]))], 0, axis)
    view = view.transpose(draw(st.permutations(range(view.ndim))))
    return view.shape, tuple(step // dtype.itemsize for step in view.strides), dtype


@given(layouts(), st.booleans())
def test_contiguous_arrays_alone_are_taken(layout: tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any]], versioned: bool) -> None:
    shape, strides, dtype = layout
    contiguous = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, [step * dtype.itemsize for step in strides]).flags.c_contiguous
    producer = Producer(shape, dtype, strides=strides, version=(1, 0) if versioned else None)
    given_interface = interface(shape=shape, typestr=dtype.str, strides=tuple(step * dtype.itemsize for step in strides))
    for value in (producer, given_interface):
        if contiguous:
            array = take(value)
            assert (array.shape, array.dtype, array.nbytes) == (shape, dtype, int(np.prod(shape)) * dtype.itemsize)
            del array
        else:
            with pytest.raises(ConfigError, match="not contiguous"):
                take(value)
    gc.collect(0)
    assert producer.deleted == 1


# Out again


def test_a_view_is_taken_again() -> None:
    driver = HostDriver()
    with driver.create_stream() as stream, driver.allocate(24) as buffer:
        view = DeviceView(buffer.pointer, (2, 3), np.dtype(np.float32), buffer, stream)
        told = view.__cuda_array_interface__
        assert told == {
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (buffer.pointer, False),
            "strides": None,
            "version": 3,
            "stream": stream.handle,
        }
        array = take(view, stream)
        assert (array.pointer, array.shape, array.dtype, array.owner) == (buffer.pointer, (2, 3), np.dtype(np.float32), view)
        assert DeviceView(buffer.pointer, (6,), np.dtype(np.int32)).__cuda_array_interface__["stream"] is None
        stream.close()
        with pytest.raises(DeviceError, match="closed"):
            _ = view.__cuda_array_interface__
