"""Sphinx extension: writes the pages that are made from code and figures into docs/generated, before Sphinx reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import api_pages
import benchmark_pages
import definitions
import kernel_pictures
import link_check
from sphinx.errors import SphinxError
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent.parent
_log = logging.getLogger(__name__)
_documented: list[str] = []


def _write(app: Any, config: Any) -> None:
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    # Sphinx-Gallery keeps the pages of examples that are gone.
    for path in (folder / "gallery").glob("*.rst"):
        if path.stem not in ("index",) and not (ROOT / "docs/gallery" / f"{path.stem}.py").exists():
            path.unlink()
    for name in ("table", "calls", "multi_scale"):
        (folder / f"definition_{name}.txt").write_text(getattr(definitions, name)())
    benchmark_pages.write(ROOT, folder / "benchmarks")
    kernel_pictures.write(folder / "kernels")
    picture = next(ROOT.glob("benchmarks/**/speed.png"), None)
    words = "Time of SSIM and its gradient, ours beside the peers"
    text = f"![{words}](/generated/benchmarks/{picture.name})\n" if picture is not None else ""
    (folder / "speed_picture.txt").write_text(text)
    _documented[:] = api_pages.write(folder / "api")


def _check(app: Any, env: Any) -> None:
    """Warns, which fails `make docs`, for a public name that no page documents."""
    known = env.domaindata["py"]["objects"]
    for name in _documented:
        if name not in known:
            _log.warning("%s is public, and no page documents it", name)


def _check_links(app: Any, error: Exception | None) -> None:
    """Fails the build for a link of ours that leads nowhere."""
    if error is None and app.builder.format == "html":
        broken = link_check.broken_links(Path(app.outdir))
        for line in broken:
            _log.error("%s", line)
        if broken:
            raise SphinxError(f"{len(broken)} links lead nowhere, see above")


def _plain(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = api_pages.as_rst(lines)


def setup(app: Any) -> dict[str, Any]:
    """Registers the extension."""
    app.connect("config-inited", _write)
    # Before napoleon, which reads what remains as Google's style.
    app.connect("autodoc-process-docstring", _plain, priority=400)
    app.connect("build-finished", _check_links)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
