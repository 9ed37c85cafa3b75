"""Colours and the look of figures, the same on the page, on paper and for every eye.

The colours are those of Okabe and Ito, which people with any of the common colour deficiencies tell
apart; shape, dash or a word says the same again. On the page ink and lines are variables of the
style sheet, so that one drawing serves light, dark and print; on paper they are the light ones.

References:
    M. Okabe, K. Ito, Color universal design (2008), https://jfly.uni-koeln.de/color/
"""

import json
from collections.abc import Mapping
from typing import Any

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#8A8A8A"
SERIES = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, GREY)

# Provenance: colour, shape and the word that people read.
PROVENANCE_COLORS = {
    "measured": GREEN,
    "estimated": ORANGE,
    "simulated": PURPLE,
    "none": GREY,
}
PROVENANCE_SHAPES = {
    "measured": "circle",
    "estimated": "triangle-up",
    "simulated": "diamond",
    "none": "cross",
}
PHASE_COLORS = {
    "compile": VERMILLION,
    "warmup": ORANGE,
    "train": SKY,
    "eval": GREEN,
    "input": BLUE,
    "checkpoint": PURPLE,
    "idle": GREY,
    "other": YELLOW,
    "lost": "#000000",
}

INK, FAINT, GRID, PAPER = "var(--ink)", "var(--faint)", "var(--line)", "var(--paper)"
_ON_PAPER = {INK: "#1b1b1b", FAINT: "#555555", GRID: "#e2e2e2", PAPER: "#ffffff"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"

CONFIG: dict[str, Any] = {
    "background": None,
    "font": _FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": FAINT,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelFontSize": 11.5,
        "titleFontSize": 12.5,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "labelLimit": 150,
        "titlePadding": 8,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
    "axisBand": {"grid": False},
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "labelColor": INK,
        "titleColor": FAINT,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "symbolSize": 90,
        "columnPadding": 14,
        "offset": 10,
    },
}


def on_paper(spec: Mapping[str, Any], width: int = 480) -> dict[str, Any]:
    """A figure of the page as one for paper: a fixed width, and inks that need no style sheet."""
    text = json.dumps({**spec, "width": width, "config": CONFIG})
    for variable, color in _ON_PAPER.items():
        text = text.replace(variable, color)
    paper = json.loads(text)
    paper["config"]["font"] = "Liberation Sans, Arial, Helvetica, sans-serif"
    return paper
