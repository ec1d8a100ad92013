"""Findings of a check for those who read them: a table, Markdown, JUnit XML, and annotations of a CI run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from planners.commands.tables import table
from planners.gate.drift import FAILING, MEANINGS, Finding

Findings = Mapping[str, Sequence[Finding]]
SUMMARY_BYTES = 1_000_000  # GitHub refuses a step summary above 1 MiB


def words(found: Findings) -> str:
    """Return a table for people: one line a finding, one a clean scenario."""
    rows = [["Scenario", "Class", "What", "Difference"]]
    for name, each in found.items():
        rows += [[name, finding.kind, finding.what, finding.words] for finding in each]
        if not each:
            rows.append([name, "clean", "", "as locked"])
    return table(rows)


def markdown(found: Findings, fail_on: Sequence[str] = FAILING) -> str:
    """Return a step summary: the verdict, then a table a scenario, then what the classes mean."""
    lines = [f"### Plan check: {'drift' if _any(found, fail_on) else 'clean'}", ""]
    for name, each in found.items():
        lines += [f"**{name}**", ""]
        if each:
            lines += ["| Class | What | Difference |", "|---|---|---|"]
            lines += [f"| {finding.kind} | {_cell(finding.what)} | {_cell(finding.words)} |" for finding in each]
        else:
            lines.append("As locked.")
        lines.append("")
    kinds = {finding.kind for each in found.values() for finding in each}
    lines += [f"- {kind}: {meaning}" for kind, meaning in MEANINGS.items() if kind in kinds]
    text = "\n".join(lines).rstrip() + "\n"
    return text if len(text.encode()) < SUMMARY_BYTES else text[: SUMMARY_BYTES // 4] + "\n\n(cut)\n"


def junit(found: Findings, lock_file: str, fail_on: Sequence[str] = FAILING) -> str:
    """Return JUnit XML: one case a scenario that is clean, else one a finding; those that fail are failures."""
    cases = sum(max(1, len(each)) for each in found.values())
    failures = sum(finding.kind in fail_on for each in found.values() for finding in each)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root, "testsuite", name="plan check", tests=str(cases), failures=str(failures), errors="0"
    )
    for name, each in found.items():
        about = {"classname": f"plan.{name}", "file": lock_file}
        if not each:
            ElementTree.SubElement(suite, "testcase", about | {"name": "as locked"})
        for finding in each:
            case = ElementTree.SubElement(suite, "testcase", about | {"name": finding.what})
            if finding.kind in fail_on:
                ElementTree.SubElement(case, "failure", type=finding.kind, message=finding.words)
            else:
                ElementTree.SubElement(case, "system-out").text = f"{finding.kind}: {finding.words}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def annotations(found: Findings, lock_file: str, fail_on: Sequence[str] = FAILING) -> list[str]:
    """Return the lines that mark the lock file in a GitHub run, errors where a finding fails."""
    lines = Path(lock_file).read_text(encoding="utf-8").splitlines() if Path(lock_file).exists() else []
    marks = []
    for name, each in found.items():
        start = next((number for number, line in enumerate(lines, 1) if line.strip().startswith(f'"{name}"')), 1)
        for finding in each:
            level = "error" if finding.kind in fail_on else "notice"
            place = _line_of(lines, start, finding.what)
            title = _escaped(f"{name}: {finding.kind}", is_property=True)
            marks.append(f"::{level} file={lock_file},line={place},title={title}::{_escaped(finding.words)}")
    return marks


def _any(found: Findings, fail_on: Sequence[str]) -> bool:
    return any(finding.kind in fail_on for each in found.values() for finding in each)


def _line_of(lines: Sequence[str], start: int, what: str) -> int:
    """Return the line of a figure after a scenario's first line; that line where the figure has none."""
    for number in range(start, len(lines) + 1):
        if lines[number - 1].strip().startswith(f'"{what}"'):
            return number
    return start


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escaped(text: str, is_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if is_property else text
