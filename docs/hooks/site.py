"""Hook of mkdocs: pages that stand elsewhere in the repository, pages written from the code, and their links.

A link is written so that it holds in the repository (`../specs/data.md`); here it is turned to where its target is on
the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402 -- in the folder of this file, which is no package

_OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CITATION.cff",
    "specs/*.md",
    "benchmarks/*.py",
    "benchmarks/results/*.md",
    "benchmarks/results/*.csv",
    "benchmarks/results/*.png",
    "examples/*.png",
    "examples/*.py",
    "examples/*.ipynb",
)
"""What of the repository outside docs/ is shown, or can be fetched, on the site."""
_PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)#\s]+)(?P<rest>[^)]*\))")


def on_files(files: Files, config: Any) -> Files:
    for pattern in _OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = _on_site(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, place, abs_src_path=str(path)))
    for place, write in reference.PAGES.items():
        files.append(File.generated(config, place, content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    here = page.file.src_uri
    in_repository = {place: path for path, place in _PLACES.items()}.get(here) or _in_repository(here)

    def turned(link: re.Match[str]) -> str:
        target = link["target"]
        if "://" in target or target.startswith(("mailto:", "/")):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), target))
        place = posixpath.relpath(_on_site(path), posixpath.dirname(here) or ".")
        return f"{link['before']}{place}{link['rest']}"

    return _LINK.sub(turned, markdown)


def _on_site(path: str) -> str:
    """Where a file of the repository is on the site."""
    return _PLACES.get(path) or path.removeprefix("docs/")


def _in_repository(place: str) -> str:
    inside = f"docs/{place}"
    return inside if (ROOT / inside).is_file() or place in reference.PAGES else place
