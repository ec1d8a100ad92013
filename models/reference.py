"""Hands kernels a named tuple of arrays as one pointer.

Numba would pass all that each array consists of, seven words and more, anew with every call between kernels that is not
inlined: a replay took twice as long.
"""

from typing import Any, TypeVar

from numba import extending
from numba.core import cgutils, types
from numba.core.types.containers import BaseTuple
from numba.core.typing.templates import AttributeTemplate

Fields = TypeVar("Fields", bound=tuple[Any, ...])


class Reference(types.Type):  # type: ignore[misc]
    """The type of a pointer to a named tuple that lies where Python called the kernel."""

    def __init__(self, fields: Any) -> None:
        self.fields = fields
        super().__init__(name=f"Reference({fields})")


def by_reference(named_tuple: type[Fields]) -> type[Fields]:
    """Let kernels take instances of a named tuple of arrays by reference: they read its fields and set none."""

    @extending.typeof_impl.register(named_tuple)  # type: ignore[untyped-decorator]
    def _(value: Any, context: Any) -> Reference:
        members = [extending.typeof_impl(member, context) for member in value]
        return Reference(BaseTuple.from_types(members, type(value)))

    return named_tuple


@extending.register_model(Reference)
class _Pointer(extending.models.OpaqueModel):  # type: ignore[misc,name-defined]
    """An address."""


@extending.unbox(Reference)  # type: ignore[untyped-decorator]
def _unbox(reference: Any, value: Any, call: Any) -> Any:
    """Lay the fields out on the stack of the call that came from Python."""
    native = call.unbox(reference.fields, value)
    place = cgutils.alloca_once_value(call.builder, native.value)
    address = call.builder.bitcast(place, call.context.get_value_type(reference))
    return extending.NativeValue(address, is_error=native.is_error, cleanup=native.cleanup)


@extending.infer_getattr
class _Attributes(AttributeTemplate):  # type: ignore[misc]
    key = Reference

    def generic_resolve(self, reference: Any, name: str) -> Any:
        """Return the type of a field."""
        names = reference.fields.instance_class._fields
        return reference.fields.types[names.index(name)] if name in names else None


@extending.lower_getattr_generic(Reference)  # type: ignore[untyped-decorator]
def _field(context: Any, builder: Any, reference: Any, address: Any, name: str) -> Any:
    place = reference.fields.instance_class._fields.index(name)
    fields = builder.bitcast(address, context.get_value_type(reference.fields).as_pointer())
    return _loaded(builder, cgutils.gep_inbounds(builder, fields, 0, place))


def _loaded(builder: Any, pointer: Any) -> Any:
    """Load what a pointer points to word by word, each once and for all: no kernel changes them."""
    kind = pointer.type.pointee
    if not hasattr(kind, "elements") and not hasattr(kind, "element"):
        word = builder.load(pointer)
        word.set_metadata("invariant.load", builder.module.add_metadata([]))
        return word
    whole = kind(cgutils.ir.Undefined)
    for place in range(len(kind)):
        whole = builder.insert_value(whole, _loaded(builder, cgutils.gep_inbounds(builder, pointer, 0, place)), place)
    return whole
