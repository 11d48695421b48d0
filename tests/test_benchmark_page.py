"""The report's page in a real browser: opened from a file, without a network."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest
from test_benchmark_report import everything, save

from icrl_gym.benchmark import SUITES, Suite
from icrl_gym.benchmark.report import write_report
from icrl_gym.configuration import ReportConfig

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip
# Origins of a page that was opened from a file, as Chromium's log of the network writes them; what the browser asks for
# on its own account has none.
PAGE_ORIGINS = ("null", "file://")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)"),
]


@dataclass(frozen=True)
class Visit:
    """What became of a page: its document after the scripts ran, what its console said, and what it asked for."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page, tmp_path):
    log = tmp_path / "network.json"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = [line.split("CONSOLE", 1)[1] for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = [event.get("params", {}) for event in events(log.read_text())]
    requests = {p["url"] for p in found if p.get("initiator") in PAGE_ORIGINS and p.get("url", "").startswith("http")}
    return Visit(done.stdout, console, sorted(requests))


def events(text):
    """The events of a network log, which lacks its end if the browser left in a hurry."""
    try:
        return json.loads(text)["events"]
    except json.JSONDecodeError:
        return json.loads(text.rstrip().rstrip(",") + "]}")["events"]


@pytest.fixture
def page(tmp_path, monkeypatch):
    tasks = tuple(dict.fromkeys(one.cell.task for one in everything()))
    monkeypatch.setitem(SUITES, "small", Suite(tasks))
    write_report(ReportConfig(save(tmp_path, everything())))
    return tmp_path / "report.html"


def with_script(page, script):
    """A copy of the page in which a reader has done something."""
    copy = page.with_name("used.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_tables_and_figures_are_there_with_no_error_and_no_request(page, tmp_path):
    seen = visit(page, tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert 'data-ready="yes"' in seen.dom  # the script ran to its end
    assert seen.dom.count("<svg") == 5
    titles = ("Nothing was chosen on these", "Environments on which", "Accuracy", "90 % intervals", "Cost")
    for title in titles:
        assert re.search(f"<figcaption>(<code>[a-z]*</code> )?{title}", seen.dom), title
    assert '<option value="2048">2,048</option>' in seen.dom
    assert 'class="subject"' in seen.dom


def test_a_page_with_an_error_and_a_request_would_be_noticed(page, tmp_path):
    image = '<img src="http://example.invalid/a.png">'
    policy = '<meta http-equiv="Content-Security-Policy"'
    open_page = page.with_name("open.html")
    open_page.write_text(page.read_text().replace(policy, "<meta").replace("</main>", f"{image}</main>"))
    assert visit(with_script(open_page, "nowhere()"), tmp_path / "a").requests == ["http://example.invalid/a.png"]
    guarded = page.with_name("guarded.html")
    guarded.write_text(page.read_text().replace("</main>", f"{image}</main>"))
    seen = visit(with_script(guarded, "nowhere()"), tmp_path / "b")
    assert seen.requests == []  # the page's own policy forbids it ...
    assert any("Content Security Policy" in line for line in seen.console)  # ... and says so
    assert any("nowhere is not defined" in line for line in seen.console)


def column(dom, title, heading):
    """Texts of a column of the table under a title, rows that are hidden left out."""
    part = next(p for p in dom.split("<figure ") if re.search(f"<figcaption>[^/]*{re.escape(title)}", p))
    headings = re.findall(r"<th [^>]*>.*?<button[^>]*>(.*?)</button>", part)
    rows = [row for row in re.findall(r"<tr([^>]*)>(<td.*?)</tr>", part) if "hidden" not in row[0]]
    return [re.findall(r"<td[^>]*>(.*?)</td>", cells)[headings.index(heading)] for _, cells in rows]


def test_a_click_sorts_by_number_and_a_second_click_turns_it_round(page, tmp_path):
    title, heading = "Accuracy", "RMSE / std"
    script = (
        "for (const figure of document.querySelectorAll('figure.table')) for (const button of "
        "figure.querySelectorAll('th button')) if (figure.textContent.startsWith('Accuracy') && button.textContent === "
        f"'{heading}') {{ button.click(); TWICE }}"
    )
    once = visit(with_script(page, script.replace("TWICE", "")), tmp_path / "a")
    twice = visit(with_script(page, script.replace("TWICE", "button.click();")), tmp_path / "b")
    values = [float(entry.split()[0]) for entry in column(once.dom, title, heading)]
    assert len(set(values)) > 4
    assert values == sorted(values)
    turned = [float(entry.split()[0]) for entry in column(twice.dom, title, heading)]
    assert turned == sorted(values, reverse=True)
    assert once.console == twice.console == []


def test_a_chosen_length_hides_the_other_rows(page, tmp_path):
    script = "lengthBox.value = '2048'; lengthBox.dispatchEvent(new Event('change'));"
    seen = visit(with_script(page, script), tmp_path)
    assert set(column(seen.dom, "Accuracy", "context")) == {"2,048"}
    untouched = visit(page, tmp_path / "other")
    assert set(column(untouched.dom, "Accuracy", "context")) == {"512", "2,048"}
