"""The documentation site: what its pages hold, and that it builds without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import icrl_gym

ROOT = Path(__file__).parents[1]
AT_THE_ROOT = {"RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}


def pages(entries):
    """Files of a navigation."""
    for entry in entries:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else pages(target)


def test_every_public_name_is_on_the_page_of_the_api():
    documented = {
        line.rsplit(".", 1)[1]
        for line in (ROOT / "docs/api.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    }
    assert documented == set(icrl_gym.__all__) - {"__version__"}


def test_the_navigation_holds_every_page_once():
    shown = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(shown) == len(set(shown))
    assert set(shown) == written | AT_THE_ROOT


@pytest.mark.slow
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in home
    assert "InContextEvaluator" in (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
