"""The one error of this package: a trace file that cannot be believed, and the place in it."""


class BadTrace(ValueError):
    """A trace file is not what it should be; the text begins `FILE:LINE:COLUMN: ` (both counted from 1)."""

    def __init__(self, file: str, line: int, column: int, problem: str) -> None:
        super().__init__(f"{file}:{line}:{column}: {problem}")
        self.file, self.line, self.column, self.problem = file, line, column, problem

    def __reduce__(self) -> tuple[type["BadTrace"], tuple[str, int, int, str]]:
        return type(self), (self.file, self.line, self.column, self.problem)


def shown(value: object, limit: int = 40) -> str:
    """Return the value as a message shows it: its repr, cut to `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
