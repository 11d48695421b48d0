"""Give the documentation site the pages that stand at the root of the repository; a hook of mkdocs, not run by hand.

Links into docs/ lose that prefix there, and links from docs/ to a page at the root lose their "../".
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT_PAGES = ("RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, which are read anew for every build."""
    root = Path(config.docs_dir).parent
    for name in ROOT_PAGES:
        content = re.sub(r"\]\(docs/", "](", (root / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links from a page in docs/ to one at the root."""
    return re.sub(rf"\]\((?:\.\./)+({'|'.join(map(re.escape, ROOT_PAGES))})", r"](\1", markdown)
