"""Configuration of the documentation site, which `make docs` builds with Sphinx.

The pages are plain Markdown with relative links, so that they read well on GitHub too. Two things are added here while
they are read: the navigation, from the links of index.md, and the Python API, at the comments
`<!-- python: MODULE NAME... -->` of a page.
"""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isclass
from pathlib import Path

from sphinx.application import Sphinx

import ulorl

DOCS = Path(__file__).parent

project = "UloRL"
author = "the UloRL contributors"
version = release = ulorl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
highlight_language = "none"  # of a block without a language
nitpicky = True  # with -W, a reference to what does not exist fails the build

myst_heading_anchors = 4  # the anchors that GitHub makes
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_use_type_comments = False
default_role = "code"  # `name` in a docstring
python_use_unqualified_type_names = True
nitpick_ignore_regex = [
    # Types of other libraries, whose inventories need a network.
    ("py:class", r"(torch|numpy|collections|pathlib|random)\..*|dict\[int"),
    # Docstrings of attributes with a colon: napoleon takes what is before it for a type.
    ("py:class", r".* .*|avg@k"),
]
nitpick_ignore = [  # inner types of ours, which the pages do not document
    ("py:class", f"ulorl.{name}")
    for name in (
        "common.intervals.Interval",
        "config.tree.Config",
        "error_codes.ErrorCode",
        "evaluation.summary.Summary",
        "rollout.expected_length.ExpectedLengths",
        "rollout.schedules.StepCounts",
    )
]

html_theme = "furo"
html_title = "UloRL"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
smartquotes = False  # docstrings have code in them
html_theme_options = {"navigation_with_keys": True}

SECTION = re.compile(r"^## (.+)$", flags=re.MULTILINE)
PAGE = re.compile(r"\]\(([\w-]+)\.md\)")
API = re.compile(r"^<!-- python: ([\w.]+)((?: \w+)*) -->$", flags=re.MULTILINE)


def navigation(index: str) -> str:
    """Return a hidden table of contents for each section of index.md with the pages that it links."""
    _, *parts = SECTION.split(index)
    tables = []
    for caption, text in zip(parts[::2], parts[1::2], strict=True):
        pages = "\n".join(dict.fromkeys(PAGE.findall(text)))
        tables.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n")
    return "\n".join(tables)


def api(found: re.Match[str]) -> str:
    """Return the directives that document a module, or the named members of it, from their docstrings."""
    module, names = found[1], found[2].split()
    kinds = {name: "class" if isclass(getattr(import_module(module), name)) else "function" for name in names}
    members = [f".. auto{kind}:: {module}.{name}" for name, kind in kinds.items()]
    directives = members or [f".. automodule:: {module}\n   :members:"]
    return "```{eval-rst}\n" + "\n".join(directives) + "\n```\n"


def complete(_: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation to index.md, and the Python API to the pages that ask for it."""
    source[0] = API.sub(api, source[0])
    if page == "index":
        source[0] += "\n" + navigation(source[0])


def as_text(_: Sphinx, _kind: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Let a bar in a docstring be a bar, as in |o_i|: in reStructuredText it begins a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> None:
    """Connect the functions above; Sphinx calls it."""
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", as_text)
