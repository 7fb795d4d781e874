"""What the real classes of the bindings have: attributes, special methods, a buffer, and methods that subclasses must write."""

from __future__ import annotations

import ctypes
import inspect
from typing import Any

from tests.engines.bindings.signatures import parse
from tests.engines.bindings.type_checks import ANYTHING, Types

# Methods of classes that are there to be inherited from: TensorRT fails in its own threads where a subclass does not write them.
TO_BE_WRITTEN = {
    "ILogger": ("log",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "IProfiler": ("report_layer_time",),
    "IStreamReader": ("read",),
    "IStreamWriter": ("write",),
}
# Where CPython keeps the pointer to a type's buffer functions, counted in pointers: the same from 3.8 on in builds with a global lock.
BUFFER_SLOT = 20
NOT_SPECIAL = {"__init__", "__new__", "__del__", "__doc__", "__module__", "__repr__", "__str__", "__hash__", "__eq__", "__ne__", "__dict__"}


def lookup(real: type, name: str) -> Any:
    """An attribute as the classes hold it, None where it is none of the real class's own; what all Python objects have does not count."""
    for cls in real.__mro__:
        if cls is object:
            break
        if name in vars(cls):
            return vars(cls)[name]
    return None


def is_method(attribute: Any) -> bool:
    """Whether an attribute as a class holds it is a method that pybind11 made."""
    return type(attribute).__name__ in ("instancemethod", "builtin_function_or_method")


def special_methods(real: type) -> set[str]:
    """The methods of a real class that Python's syntax calls, such as `len`, except those that stand-ins have of their own."""
    names = {name for name in dir(real) if name.startswith("__") and name.endswith("__")} - NOT_SPECIAL
    found = {name: lookup(real, name) for name in names}
    return {name for name, value in found.items() if is_method(value) or inspect.isfunction(value)}


def has_buffer(real: type) -> bool:
    """Whether `bytes` and `memoryview` take objects of the class. It is read from the type: no object can be made to try it."""
    slots = ctypes.cast(id(real), ctypes.POINTER(ctypes.c_void_p))[BUFFER_SLOT]
    return bool(slots) and bool(ctypes.cast(slots, ctypes.POINTER(ctypes.c_void_p))[0])


def overrides_problem(types: Types, value: Any, annotation: str) -> str:
    """Why TensorRT could not call a subclass that the code wrote: a method is missing, or takes other arguments. Empty where it could."""
    cls = type(value)
    if type(cls).__name__ != "pybind11_type" or annotation in ANYTHING:
        return ""
    real = types.resolve(annotation)
    if real is None or not issubclass(cls, real):
        return ""
    for name in TO_BE_WRITTEN.get(real.__name__, ()):
        if lookup(cls, name) is lookup(real, name):
            return f"{cls.__name__} has no {name} of its own"
    for name in dir(cls):
        if name.startswith("_") or lookup(cls, name) is lookup(real, name) or not is_method(lookup(real, name)):
            continue
        if is_method(lookup(cls, name)):  # the bindings' own subclass, as Logger is
            continue
        signature = parse(lookup(real, name).__doc__, name)[0]
        try:
            inspect.signature(getattr(value, name)).bind(*signature.parameters)
        except TypeError as error:
            return f"TensorRT calls {signature} of {cls.__name__}: {error}"
    return ""
