"""Stand-ins for TensorRT's objects, made from the real classes of bindings that cannot construct any of them.

A stand-in has the attributes of its real class and no others. Its methods check their arguments against the real signatures, its
properties can be assigned where the real ones can, and calls and assignments go into one journal. Where nothing was configured, a method
returns a stand-in of the class that its signature names. See `install`, `stand_in`, `configure`, `journal` and `call_back`.
"""

from __future__ import annotations

import array
import importlib.machinery
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from tests.engines.bindings import real_classes
from tests.engines.bindings.real_classes import has_buffer, lookup, overrides_problem
from tests.engines.bindings.signatures import REQUIRED, Signature, parse
from tests.engines.bindings.type_checks import Types, is_enum, name_of

# What stand-ins answer for themselves, or as any Python object does.
OWN = {
    "__class__",
    "__dir__",
    "__repr__",
    "__init__",
    "__new__",
    "__buffer__",
    "__release_buffer__",
    "__reduce_ex__",
    "__doc__",
    "__hash__",
}
CONSTRUCTORS = ("Builder", "Runtime", "OnnxParser", "OnnxParserRefitter", "Refitter")
MODULE = "module"  # the name by which functions of the module are configured


@dataclass(frozen=True)
class Entry:
    """One call or assignment: `arguments` by the real parameters' names, `name` as in "IBuilderConfig.set_flag"."""

    kind: str
    name: str
    arguments: dict[str, Any]
    owner: Any
    result: Any = None

    def as_json(self) -> list[Any]:
        return [self.kind, self.name, {name: plain(value) for name, value in self.arguments.items()}]


class Installed:
    """What belongs to the one set of bindings that a process has."""

    def __init__(self, real: ModuleType, name: str) -> None:
        self.real, self.name, self.version = real, name, real.__version__
        self.types = Types(real)
        self.journal: list[Entry] = []
        self.configured: dict[str, dict[str, Any]] = {}
        self.kinds: dict[type, type] = {}


_installed: Installed | None = None


def now() -> Installed:
    """The bindings of this process."""
    assert _installed is not None, "install() comes first"
    return _installed


def install(real: ModuleType, name: str = "tensorrt") -> ModuleType:
    """Begins with the bindings `real`, known to code as `name`, and returns `module_stand_in()`."""
    global _installed
    _installed = Installed(real, name)
    return module_stand_in()


def journal(*names: str) -> list[Entry]:
    """All entries in order, or those of the calls and assignments named, as in "Builder.create_network"."""
    return [entry for entry in now().journal if not names or entry.name in names]


def journal_as_json(*names: str) -> list[list[Any]]:
    """`journal` as lists of kind, name and arguments that JSON can hold."""
    return [entry.as_json() for entry in journal(*names)]


def plain(value: Any) -> Any:
    """A value of the journal as JSON can hold it: "BuilderFlag.TF32", "<Builder>", "12 bytes"."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if is_enum(type(value)):
        return f"{type(value).__name__}.{value.name}"
    if type(value).__name__ in ("Dims", "DimsHW", "Permutation") or isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    try:
        return f"{memoryview(value).nbytes} bytes"
    except TypeError:
        return f"<{value.__class__.__name__}>"


def real_class(of: Any) -> type:
    """The real class of this name, of this constructor of the stand-in module, or itself."""
    found = getattr(now().real, of, None) if isinstance(of, str) else getattr(of, "_real", of)
    if not isinstance(found, type):
        raise AttributeError(f"{now().name} {now().version} has no class {of}")
    return found


def configure(of: Any, **values: Any) -> None:
    """What methods return and properties hold in all stand-ins of a class, given or by name; `MODULE` configures the module's functions.

    A callable is called with the arguments of the call, and may raise. Sequences become real `Dims`, bytes an `IHostMemory`, where the
    signature says so. A value that the real method could not return raises TypeError when it would be returned.
    """
    if of == MODULE:
        owner: Any = now().real
        cls_name = MODULE
    else:
        owner = real_class(of)
        cls_name = owner.__name__
    for name in values:
        if not hasattr(owner, name):
            raise AttributeError(f"{cls_name} of {now().name} {now().version} has no attribute {name!r}")
    now().configured.setdefault(cls_name, {}).update(values)


def _bind(signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments by name, and why they do not fit; pybind11's made-up names arg0, arg1 … are no keywords."""
    given: dict[str, Any] = {}
    left, rest = list(args), dict(kwargs)
    for parameter in signature.parameters:
        if parameter.kind == "*args":
            given[parameter.name], left = tuple(left), []
            continue
        if parameter.kind == "**kwargs":
            given[parameter.name], rest = rest, {}
            continue
        unnamed = parameter.kind == "/" or (parameter.name.startswith("arg") and parameter.name[3:].isdigit())
        if left and parameter.kind != "*":
            if parameter.name in rest and not unnamed:
                return given, f"{parameter.name} is given twice"
            value = left.pop(0)
        elif parameter.name in rest and not unnamed:
            value = rest.pop(parameter.name)
        elif parameter.default is REQUIRED:
            return given, f"{parameter.name} is missing"
        else:
            continue
        given[parameter.name] = value
        problem = now().types.problem(value, parameter.annotation, none=parameter.default == "None")
        problem = problem or overrides_problem(now().types, value, parameter.annotation)
        if problem:
            return given, f"{parameter.name}: {problem}"
    return given, f"{len(left)} too many" if left else f"no parameter is named {next(iter(rest))}" if rest else ""


def check_call(
    owner: str, signatures: tuple[Signature, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Signature, dict[str, Any]]:
    """The first overload that takes the arguments, and the arguments by name. Raises TypeError where none does."""
    problems = []
    for signature in signatures:
        given, problem = _bind(signature, args, kwargs)
        if not problem:
            return signature, given
        problems.append(f"  {signature}: {problem}")
    said = ", ".join([*map(name_of, args), *(f"{name}={name_of(value)}" for name, value in kwargs.items())])
    raise TypeError("\n".join([f"{owner}({said}) does not fit {now().name} {now().version}:", *problems]))


def _result(owner: str, annotation: str, value: Any) -> Any:
    """A configured value as the real function would return it."""
    cls = now().types.resolve(annotation) if annotation.endswith("IHostMemory") else None
    if cls is not None and isinstance(value, (bytes, bytearray)):
        return stand_in(cls, buffer=bytes(value))
    problem = now().types.problem(value, annotation, none=True)
    if problem:
        raise TypeError(f"{owner} of {now().name} {now().version} was configured wrongly: {problem}")
    return now().types.convert(value, annotation)


def _default(annotation: str) -> Any:
    value = now().types.default(annotation)
    return stand_in(value) if isinstance(value, type) else value


def _answer(owner: str, signature: Signature, configured: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if configured is REQUIRED:
        return _default(signature.returns)
    value = configured(*args, **kwargs) if _is_code(configured) else configured
    return _result(owner, signature.returns, value)


def _is_code(value: Any) -> bool:
    return callable(value) and not isinstance(value, (StandIn, type))


class StandIn:
    """The base of all stand-ins: `real` is the real class, `values` what was configured or assigned for this one."""

    def __getattribute__(self, name: str) -> Any:
        state = object.__getattribute__(self, "__dict__")
        real = state["real"]
        if name == "__class__":
            return real
        if name in OWN or (name.startswith("__") and name.endswith("__") and lookup(real, name) is None):
            return object.__getattribute__(self, name)
        found = lookup(real, name)
        if found is None:
            raise AttributeError(f"{real.__name__} of {now().name} {now().version} has no attribute {name!r}")
        if isinstance(found, property):
            return _read(self, state, name, found)
        if isinstance(found, FunctionType):
            return found.__get__(self)
        if real_classes.is_method(found):
            return lambda *args, **kwargs: _call(self, state, name, args, kwargs)
        return getattr(real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        state = object.__getattribute__(self, "__dict__")
        real = state["real"]
        where = f"{real.__name__} of {now().name} {now().version}"
        found = lookup(real, name)
        if found is None:
            raise AttributeError(f"{where} has no attribute {name!r}")
        if not isinstance(found, property) or found.fset is None:
            raise AttributeError(f"{where}: {name!r} cannot be assigned")
        for signature in parse(found.fset.__doc__):
            annotation = signature.parameters[0].annotation
            problem = now().types.problem(value, annotation, none=True) or overrides_problem(now().types, value, annotation)
            if problem:
                raise TypeError(f"{where}: {name} = {problem}")
        state["values"][name] = value
        now().journal.append(Entry("set", f"{real.__name__}.{name}", {"value": value}, self))

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self.__class__.__name__} of {now().name} {now().version}: {name!r} cannot be deleted")

    def __dir__(self) -> list[str]:
        return dir(self.__class__)

    def __repr__(self) -> str:
        return f"<stand-in of {self.__class__.__name__}>"


def _configured(state: dict[str, Any], name: str) -> Any:
    """What was configured for this stand-in or a class of its real one; `REQUIRED` where nothing was."""
    if name in state["values"]:
        return state["values"][name]
    for cls in state["real"].__mro__:
        if name in now().configured.get(cls.__name__, {}):
            return now().configured[cls.__name__][name]
    return REQUIRED


def _read(owner: Any, state: dict[str, Any], name: str, found: property) -> Any:
    label = f"{state['real'].__name__}.{name}"
    if found.fget is None:
        raise AttributeError(f"{label} of {now().name} {now().version} cannot be read")
    configured = _configured(state, name)
    signatures = parse(found.fget.__doc__)
    if not signatures:  # written in Python
        return found.fget(owner)
    annotation = signatures[0].returns
    if configured is not REQUIRED:
        return _result(label, annotation, configured() if _is_code(configured) and name not in state["values"] else configured)
    cls = now().types.default(annotation)
    # An object that can be assigned is mostly None before that; the others are there from the start, and stay the same.
    state["values"][name] = None if isinstance(cls, type) and found.fset is not None else _default(annotation)
    return state["values"][name]


def _call(owner: Any, state: dict[str, Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = state["real"]
    label = f"{real.__name__}.{name}"
    signature, given = check_call(label, parse(lookup(real, name).__doc__, name), args, kwargs)
    result = _answer(label, signature, _configured(state, name), args, kwargs)
    now().journal.append(Entry("call", label, given, owner, result))
    return result


def _special(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _kind(real: type) -> type:
    """The class of a real class's stand-ins; it has the special methods of the real one, and a buffer where that has one."""
    if real not in now().kinds:
        members: dict[str, Any] = {}
        bases: tuple[type, ...] = (StandIn,)
        if has_buffer(real):
            bases = (StandIn, array.array)
            members = {name: None for name in dir(array.array) if name.startswith("__") and name not in dir(object) and name not in OWN}
            members |= {"__hash__": object.__hash__, "__eq__": object.__eq__, "__ne__": object.__ne__}
            members |= {name: getattr(object, name) for name in ("__lt__", "__le__", "__gt__", "__ge__")}
        members |= {name: _special(name) for name in real_classes.special_methods(real)}
        now().kinds[real] = type(f"StandInOf{real.__name__}", bases, members)
    return now().kinds[real]


def stand_in(of: Any, *, buffer: bytes = b"", **values: Any) -> Any:
    """A stand-in of a real class, given or by name. `values` configure this one as `configure` does all; `buffer` is what it holds."""
    real = real_class(of)
    for name in values:
        if lookup(real, name) is None:
            raise AttributeError(f"{real.__name__} of {now().name} {now().version} has no attribute {name!r}")
    kind = _kind(real)
    made: Any = array.array.__new__(kind, "B", buffer) if issubclass(kind, array.array) else object.__new__(kind)
    sizes = {"nbytes": len(buffer)} if issubclass(kind, array.array) and lookup(real, "nbytes") is not None else {}
    object.__getattribute__(made, "__dict__").update(real=real, values={**sizes, **values})
    return made


class _Constructor(type):
    """The class of the classes whose call gives a stand-in; for all else they are the real class."""

    _real: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        label = cls._real.__name__
        configured = now().configured.get(label, {}).get("__init__", REQUIRED)
        _, given = check_call(label, parse(cls._real.__init__.__doc__, "__init__"), args, kwargs)
        if configured is not REQUIRED:
            configured(*args, **kwargs)
        made = stand_in(cls._real, **{name: value for name, value in given.items() if lookup(cls._real, name) is not None})
        now().journal.append(Entry("call", label, given, made, made))
        return made

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls._real)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real, name)

    def __dir__(cls) -> list[str]:
        return dir(cls._real)


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{now().name} {now().version} has no {name!r}")


def _function(name: str, real: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        signature, given = check_call(name, parse(real.__doc__, name, has_self=False), args, kwargs)
        result = _answer(name, signature, now().configured.get(MODULE, {}).get(name, REQUIRED), args, kwargs)
        now().journal.append(Entry("call", name, given, None, result))
        return result

    return call


def module_stand_in() -> ModuleType:
    """The real module with all its names, but with constructors that give stand-ins, and functions that are checked and noted."""
    real = now().real
    module = _Module(now().name, real.__doc__)
    module.__dict__.update({name: value for name, value in vars(real).items() if name not in ("__spec__", "__name__", "__loader__")})
    module.__spec__ = importlib.machinery.ModuleSpec(now().name, None, is_package=True)
    for name, value in vars(real).items():
        if name in CONSTRUCTORS:
            setattr(module, name, _Constructor(name, (), {"_real": value}))
        elif not isinstance(value, (type, FunctionType)) and callable(value) and parse(value.__doc__, name, has_self=False):
            setattr(module, name, _function(name, value))
    return module


def call_back(value: Any, of: Any, name: str, *args: Any) -> Any:
    """Calls a method of the code's own subclass as TensorRT would, and checks what goes in and what comes out.

    `of` is the real class, given or by name. Strings may be None, as a phase without a parent has it.
    """
    real = real_class(of)
    problem = overrides_problem(now().types, value, real.__name__)
    if problem or lookup(real, name) is None:
        raise TypeError(problem or f"{real.__name__} of {now().name} {now().version} has no {name!r}")
    signature = parse(lookup(real, name).__doc__, name)[0]
    for parameter, argument in zip(signature.parameters, args, strict=True):
        problem = now().types.problem(argument, parameter.annotation, none=True)
        if problem:
            raise TypeError(f"{real.__name__}.{name}: {parameter.name}: {problem}")
    result = getattr(value, name)(*args)
    problem = now().types.problem(result, signature.returns)
    if problem:
        raise TypeError(f"{type(value).__name__}.{name} returned what {now().name} {now().version} does not take: {problem}")
    return result
