"""The documentation site: `make docs` builds it into build/docs, `make gallery` runs the long examples too."""

import os
import re
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext"), str(ROOT / "scripts")]
# Two threads, as CI has: an example must be bearable there.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import splat_ssim  # noqa: E402

project = "splat_ssim"
author = "The splat_ssim authors"
project_copyright = author
release = version = splat_ssim.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "generated_pages",
]
exclude_patterns = ["_ext", "gallery", "generated/gallery/*.ipynb", "generated/gallery/*.py"]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Every reference of our own must lead somewhere; those to Python and torch are left alone, since CI has no network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes")]

html_theme = "furo"
html_title = "splat_ssim"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    # Each runs in at most 30 seconds on two cores; those that end in _long are run by `make gallery` alone.
    "filename_pattern": r"plot_" if os.environ.get("SPLAT_SSIM_GALLERY") == "all" else r"plot_(?!.*_long\.py)",
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "plot_gallery": True,
    "abort_on_example_error": True,
    "reset_argv": lambda *_: [],
    "min_reported_time": 0,
    "backreferences_dir": None,
    "show_signature": False,
    "reset_modules": ("matplotlib",),
    "notebook_images": False,
    # Two examples at a time, each with one thread.
    "parallel": 2,
}
warnings.filterwarnings("ignore", message="Matplotlib is currently using agg", category=UserWarning)


def links_to_files(app, docname, source):
    """Turns links to files of the repository that are no pages into plain code.

    The same Markdown is read on GitHub, where `../configs/fast.yaml` leads to the file.
    """
    page = Path(app.env.doc2path(docname))
    docs = Path(app.srcdir)

    def replaced(found):
        words, place = found[1], found[2]
        target = (page.parent / place.partition("#")[0]).resolve()
        if place.startswith(("http", "/", "#")) or target.is_relative_to(docs) or not target.exists():
            return found[0]
        name = target.relative_to(ROOT)
        return f"`{name}`" if words == str(name) else f"{words} (`{name}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", replaced, source[0])


def setup(app):
    """Registers what this file defines."""
    app.connect("source-read", links_to_files)
