"""Draws which parts of the package import which, from the import statements: `python scripts/draw_layout.py`.

Writes docs/layout.svg. The same imports give the same bytes. `--check` only compares, and exits with status 1 if the
picture is out of date.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "splat_ssim"
PICTURE = ROOT / "docs" / "layout.svg"

#: File -> the room, that is the box of the drawing, that it shares with others. All other files and folders have a room
#: of their own.
ROOMS = {
    **dict.fromkeys(("functional", "loss", "modules", "registry", "distributed", "_background"), "losses"),
    **dict.fromkeys(("reference", "_maps", "options", "_checks"), "definition"),
    **dict.fromkeys(("_files", "errors", "_importing", "_locks", "_moved"), "files, errors"),
}
#: Files that only re-export names and have no room.
LEFT_OUT = {"__init__", "__main__", "_version"}

_WIDTH, _BOX_HEIGHT, _GAP, _LEVEL = 900, 34, 22, 92
_LETTER = 8.2


def _modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        found[".".join(parts)] = path
    return found


def _targets(name: str, path: Path) -> set[str]:
    """Modules of the package that a file imports, as dotted names below it, without imports for type checkers."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        stack += list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                above = package[: len(package) - node.level + 1] if package != ["__init__"] else []
                base = ["splat_ssim", *above, *base]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return {target.partition(".")[2] for target in found if target.startswith("splat_ssim.")}


def room(name: str) -> str:
    """The room of a module."""
    first = name.partition(".")[0]
    return ROOMS.get(first, first)


def imports() -> dict[str, set[str]]:
    """Each room -> the rooms that its files import."""
    modules = _modules()
    firsts = {name.partition(".")[0] for name in modules}
    graph: dict[str, set[str]] = {room(name): set() for name in modules if name not in LEFT_OUT}
    for name, path in modules.items():
        if name in LEFT_OUT:
            continue
        for target in _targets(name, path):
            first = target.partition(".")[0]
            # `from splat_ssim import ssim` names a function, which the room of losses defines.
            other = room(target) if first in firsts else "losses"
            if first not in LEFT_OUT and other != room(name):
                graph[room(name)].add(other)
    return graph


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """The level of each room: one above the highest room that it imports."""
    known: dict[str, int] = {}

    def level(name: str, way: tuple[str, ...] = ()) -> int:
        if name in way:
            raise SystemExit(f"the rooms import each other in a circle: {' -> '.join((*way, name))}")
        if name not in known:
            known[name] = 1 + max((level(other, (*way, name)) for other in graph[name]), default=-1)
        return known[name]

    for name in graph:
        level(name)
    return known


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without arrows that a longer path implies (its transitive reduction)."""

    def reached(start: str) -> set[str]:
        return {start}.union(*(reached(other) for other in graph[start]))

    return {
        name: {o for o in others if not any(o in reached(other) for other in others - {o})}
        for name, others in graph.items()
    }


def _places(graph: dict[str, set[str]]) -> dict[str, tuple[float, float, float]]:
    """Middle, top and width of each room's box. A room is placed near the rooms that it imports."""
    height = levels(graph)
    rows = [sorted(name for name in graph if height[name] == level) for level in range(max(height.values()) + 1)]
    places: dict[str, tuple[float, float, float]] = {}
    for level, names in enumerate(rows):

        def wish(name: str) -> tuple[float, str]:
            below = [places[other][0] for other in graph[name]]
            return (sum(below) / len(below) if below else _WIDTH / 2, name)

        names.sort(key=wish)
        widths = [_LETTER * len(name) + 26 for name in names]
        free = _WIDTH - sum(widths)
        space = min(free / (len(names) + 1), 150.0)
        left = (_WIDTH - sum(widths) - space * (len(names) - 1)) / 2
        top = _GAP + (len(rows) - 1 - level) * _LEVEL
        for name, width in zip(names, widths, strict=True):
            places[name] = (left + width / 2, float(top), width)
            left += width + space
    return places


def draw() -> str:
    """The picture as SVG."""
    graph = imports()
    places, arrows = _places(graph), reduced(graph)
    height = max(top for _, top, _ in places.values()) + _BOX_HEIGHT + _GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" font-family="sans-serif" '
        'font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>',
    ]
    for name in sorted(arrows):
        x1, top1, _ = places[name]
        for other in sorted(arrows[name]):
            x2, top2, _ = places[other]
            y1, y2 = top1 + _BOX_HEIGHT, top2
            bend = (y2 - y1) / 2
            lines.append(
                f'<path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2 - 2:.1f}" '
                'fill="none" stroke="#99a" stroke-width="1.3" marker-end="url(#tip)"/>'
            )
    for name in sorted(places):
        x, top, width = places[name]
        lines.append(
            f'<rect x="{x - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_BOX_HEIGHT}" rx="6" '
            'fill="#eef2fb" stroke="#446"/>'
        )
        lines.append(f'<text x="{x:.1f}" y="{top + 22:.1f}" text-anchor="middle" fill="#223">{name}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes the picture, or with --check compares it with the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if the picture is out of date"
    )
    options = parser.parse_args(arguments)
    text = draw()
    if options.check:
        return 0 if PICTURE.exists() and PICTURE.read_text() == text else 1
    PICTURE.write_text(text)
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
