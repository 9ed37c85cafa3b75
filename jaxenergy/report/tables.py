"""Tables for elsewhere: CSV for programs, Markdown for documents, LaTeX (booktabs) for papers.

Text in them comes from folder names and files that anybody may have made; each form escapes what it
would take for markup, and CSV what a spreadsheet would take for a formula.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

Columns = Sequence[tuple[str, str]]
Rows = Sequence[Mapping[str, Any]]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "…": r"\ldots{}",
}
_LATEX_PATTERN = re.compile("|".join(map(re.escape, _LATEX)))
_MARKDOWN_PATTERN = re.compile(r"([\\`*_\[\]<>|~#&])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_csv(columns: Columns, rows: Rows) -> str:
    """CSV with full precision; nothing for None. The headings carry the units."""
    text = io.StringIO()
    writer = csv.writer(text)  # ends lines as RFC 4180 says, and quotes what would end one
    writer.writerow([_csv_cell(heading) for _, heading in columns])
    for row in rows:
        writer.writerow([_csv_cell(row.get(key)) for key, _ in columns])
    return text.getvalue()


def to_markdown(columns: Columns, rows: Rows) -> str:
    """A Markdown table; numbers with four significant digits, n/a for None."""
    numeric = [_is_numeric(rows, key) for key, _ in columns]
    lines = [
        "| " + " | ".join(_markdown(heading) for _, heading in columns) + " |",
        "| " + " | ".join("---:" if right else "---" for right in numeric) + " |",
    ]
    for row in rows:
        lines.append(
            "| " + " | ".join(_markdown(_shown(row.get(key))) for key, _ in columns) + " |"
        )
    return "\n".join(lines) + "\n"


def to_latex(columns: Columns, rows: Rows, caption: str = "") -> str:
    """A LaTeX table for the package booktabs; numbers with four significant digits."""
    numeric = [_is_numeric(rows, key) for key, _ in columns]
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering"]
    if caption:
        lines.append(f"\\caption{{{_latex(caption)}}}")
    lines += [
        f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        "\\toprule",
        " & ".join(_latex(heading) for _, heading in columns) + " \\\\",
        "\\midrule",
    ]
    for row in rows:
        lines.append(" & ".join(_latex(_shown(row.get(key))) for key, _ in columns) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


def _shown(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_numeric(rows: Rows, key: str) -> bool:
    values = [row.get(key) for row in rows]
    return any(type(value) in (int, float) for value in values) and not any(
        isinstance(value, str) for value in values
    )


def _markdown(text: str) -> str:
    return _MARKDOWN_PATTERN.sub(r"\\\1", text)


def _latex(text: str) -> str:
    return _LATEX_PATTERN.sub(lambda match: _LATEX[match.group()], text)
