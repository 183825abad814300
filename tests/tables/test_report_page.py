"""The report in a real browser, at the widths of a desk and of a phone: nothing overflows, links work, no requests."""

import html
import json
import re
import shutil
import subprocess

import pytest
from conftest import REPO
from run_records import METRICS, REPORTED, SEEDS

from codeact_lib import figures, tables
from codeact_lib.config import load_profile

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
WIDTHS = (1280, 390)

# What a frame of each width finds: boxes that stick out of the page or of their own block (what may scroll sideways is
# left alone inside, not itself), links that lead nowhere, and everything that was fetched.
LOOK = """
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, width = page.documentElement.clientWidth;
  const scrolls = e => ["auto", "scroll"].includes(view.getComputedStyle(e).overflowX);
  const inside = e => { for (e = e.parentElement; e; e = e.parentElement) if (scrolls(e)) return true; return false; };
  const name = e => e.tagName + (e.id ? "#" + e.id : "") + " " + e.textContent.trim().slice(0, 40);
  const boxes = [...page.body.querySelectorAll("*")].filter(e => !e.closest("svg") && !inside(e));
  const out = boxes.filter(e => { const b = e.getBoundingClientRect(); return b.right > width + 1 || b.left < -1; });
  const cut = boxes.filter(e => !scrolls(e) && e.clientWidth && e.scrollWidth > e.clientWidth + 1);
  const links = [...page.querySelectorAll("a")].map(e => e.getAttribute("href"));
  const dead = links.filter(h => !h.startsWith("#") || !page.getElementById(decodeURIComponent(h.slice(1))));
  const fetched = view.performance.getEntriesByType("resource").map(e => e.name);
  return {width, out: out.map(name), cut: cut.map(name), links: links.length, dead, fetched};
}
onload = () => { document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(look)); };
"""


def seen(report, folder):
    """What ``LOOK`` finds at each of ``WIDTHS``."""
    shutil.copy(report, folder / "report.html")
    frames = "".join(f'<iframe src="report.html" style="border:0;width:{w}px;height:800px"></iframe>' for w in WIDTHS)
    (folder / "frames.html").write_text(f"<!doctype html><script>{LOOK}</script>{frames}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'browser'}", "--dump-dom"]
    command = [BROWSER, *flags, (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    return json.loads(html.unescape(title[1]))


@pytest.fixture(scope="module")
def made_report(tmp_path_factory):
    """All tables on two seeds, the widest figure, deviations and runs."""
    folder = tmp_path_factory.mktemp("report")
    figure = figures.pass_at_one_bars(tables.pass_at_one_frame(SEEDS))
    drawing = figures.save_figure(figure, folder / "pass_at_one", ["svg"])[0]
    makers = (tables.arms_table, tables.split_table, tables.policy_table, tables.rate_table)
    made = [tables.rq1_table(SEEDS, REPORTED["rq1"], REPORTED["followup"]), tables.rq2_table(SEEDS, REPORTED["rq2"])]
    made += [make(SEEDS) for make in (*makers, tables.comparison_table, tables.cost_table)]
    made += [tables.derived_claims_table(SEEDS, REPORTED), tables.followup_table(REPORTED)]
    profile = load_profile("mini")
    return tables.write_report(
        folder / "report.html",
        **{"title": "CodeACT, measured", "summary": tables.findings(SEEDS), "tables": made},
        **{"figures": [tables.ReportFigure(drawing, "pass@1")], "runs": tables.run_groups(SEEDS)},
        **{"deviations": tables.deviations_in_force(profile), "provenance": tables.provenance(profile, METRICS)},
    )


@pytest.mark.parametrize("which", ["made", "mini", "mini-full"])
def test_no_element_overflows_every_link_resolves_and_nothing_is_fetched(which, made_report, tmp_path):
    report = made_report if which == "made" else REPO / "results" / which / "report.html"
    found = seen(report, tmp_path)
    assert [page["width"] for page in found] == pytest.approx(WIDTHS, abs=20)  # a scroll bar
    for page in found:
        assert page["out"] == [] and page["cut"] == [], page["width"]
        assert page["dead"] == [] and page["links"] > 30
        assert page["fetched"] == []
