"""What sections of a page are put together from, as HTML."""

from __future__ import annotations


def section(title: str, intro: str, *parts: str) -> str:
    """A titled card; the intro, if any, stands in soft letters below its title."""
    told = f'<p class="soft">{intro}</p>' if intro else ""
    return f"<section><h2>{title}</h2>{told}{''.join(parts)}</section>"


def captioned(svg: str, caption: str = "") -> str:
    """A drawing with its caption above."""
    told = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{told}{svg}</figure>"


def legend(*items: tuple[str, str]) -> str:
    """Marks (of a drawing of 16 by 16 pixels) and what they mean."""
    drawn = "".join(
        f'<span><svg viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>{name}</span>' for mark, name in items
    )
    return f'<div class="legend">{drawn}</div>'


def folded(title: str, *parts: str, shown: bool = False) -> str:
    """Parts that a reader opens."""
    return f"<details{' open' if shown else ''}><summary>{title}</summary>{''.join(parts)}</details>"
