"""What all plots share: plain axes, titles that fit, labels beside the lines instead of a legend."""

import textwrap
from typing import Any

from planners.report.colours import FAINT, NEUTRAL

TITLE_WIDTH = 62


def dress(ax: Any, title: str, x: str = "", y: str = "") -> Any:
    """Give an ax its title and the names of its axes, and take away what carries no information."""
    ax.set_title("\n".join(textwrap.wrap(title, TITLE_WIDTH)), loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(True, color=FAINT, alpha=0.35, linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def say_nothing_to_show(ax: Any, title: str, words: str) -> Any:
    """Fill an ax that has no data with words that say so."""
    ax.text(0.5, 0.5, words, ha="center", va="center", color=NEUTRAL, transform=ax.transAxes)
    ax.set_xticks([])
    ax.set_yticks([])
    return dress(ax, title)


def label_line(ax: Any, x: float, y: float, words: str, colour: str) -> None:
    """Write a line's name at its end."""
    ax.annotate(words, (x, y), xytext=(4, 0), textcoords="offset points", color=colour, fontsize=8, va="center")
