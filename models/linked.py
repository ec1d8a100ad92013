"""Compiles kernels in half the usual time.

Those that only other kernels call are optimised and turned into machine code once, as parts of those that call them,
and not each on its own before. Passes that find nothing to do are left out. So is what depends on a part of a named
tuple that is not there: a kernel that asks for it is known to be told no, before anything is compiled.
"""

import gc
from typing import Any

from numba.core import ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.ir_utils import get_definition, guard

# Passes that see to what no kernel has: closures, `with`, array expressions, loops over tuples, inlining by request.
NEEDLESS = {
    *("WithLift", "InlineClosureLikes", "MakeFunctionToJitFunction", "InlineInlinables", "LiteralUnroll"),
    *("FindLiterallyCalls", "LiteralPropagationSubPipelinePass", "InlineOverloads", "NopythonRewrites"),
    *("AnnotateTypes", "DumpParforDiagnostics"),
}


class _Parts(JITCodeLibrary):  # type: ignore[misc]
    """The intermediate code of a kernel and of all that it calls, with no machine code."""

    def finalize(self) -> None:
        """Put what is called beside the caller."""
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return that there is no such code."""
        return 0

    @property
    def codegen(self) -> "_Parts":
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Drop what a call from Python would need."""


@register_pass(mutates_CFG=False, analysis_only=False)
class _KnowWhatIsNotThere(FunctionPass):  # type: ignore[misc]
    """Answers questions about an empty part of a named tuple with no; branches that hang on it are pruned next."""

    _name = "know_what_is_not_there"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Replace the calls that ask."""
        is_changed = False
        for block in state.func_ir.blocks.values():
            for statement in block.find_insts(ir.Assign):
                if _asks_in_vain(state, statement.value):
                    statement.value = ir.Const(False, statement.loc)
                    state.func_ir._definitions[statement.target.name] = [statement.value]
                    is_changed = True
        return is_changed


def _asks_in_vain(state: Any, value: Any) -> bool:
    """Say whether a value is a call that asks whether a part of an argument is there, and it is not."""
    if not isinstance(value, ir.Expr) or value.op != "call" or not value.args:
        return False
    asked = guard(get_definition, state.func_ir, value.func)
    part = getattr(getattr(asked, "value", None), "asks_for", None)
    whole = guard(get_definition, state.func_ir, value.args[0])
    if part is None or not isinstance(whole, ir.Arg):
        return False
    fields = state.args[whole.index].fields
    return len(fields.types[fields.instance_class._fields.index(part)]) == 0


class KernelCompiler(CompilerBase):  # type: ignore[misc]
    """The usual passes but for the needless ones; what they leave behind is collected afterwards, all at once."""

    def compile_extra(self, function: Any) -> Any:
        """Compile a function."""
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(function)
        finally:
            if is_collecting:
                gc.enable()

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(step, what) for step, what in passes.passes if step.__name__ not in NEEDLESS]
        prune = [step.__name__ for step, _ in passes.passes].index("DeadBranchPrune")
        passes.passes.insert(prune, (_KnowWhatIsNotThere, "know what is not there"))
        passes.finalize()
        return [passes]


class InnerCompiler(KernelCompiler):
    """The same into a library of parts."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        self.state.library = _Parts(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()
