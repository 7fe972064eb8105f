"""How Sphinx builds these pages."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE / "_ext")]

from cbit import __version__  # noqa: E402  # the paths above come first

project = "cbit"
author = "the cbit authors"
copyright = "2026, the cbit authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_theme_options = {"description": "AMD's memory encryption as software", "fixed_sidebar": True}
exclude_patterns = ["_build"]
nitpicky = False  # docstrings name types of the standard library, whose index would need a network
autodoc_member_order = "bysource"
