"""Compiles kernels that only other kernels call.

They are optimised and turned into machine code once, as parts of those that call them, and not each on its own before:
most of the compiler's time went there.
"""

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


class InnerCompiler(CompilerBase):  # type: ignore[misc]
    """The usual passes into a library of parts."""

    def define_pipelines(self) -> list[Any]:
        """Return them."""
        state = self.state
        state.library = _Parts(state.targetctx.codegen(), state.func_id.func_qualname)
        passes = DefaultPassBuilder.define_nopython_pipeline(state)
        passes.passes = [(step, what) for step, what in passes.passes if step.__name__ not in NEEDLESS]
        passes.finalize()
        return [passes]
