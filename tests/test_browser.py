"""A reader's way: JupyterLab, started by `make lab`, in a real Chromium; each notebook opened and run from its menu.

    make test-browser                         # screenshots go to artifacts/screenshots
    CODEACT_SCREENSHOTS=shots pytest tests/test_browser.py

Skipped where Chromium or Playwright is missing. Playwright drives the Chromium of the system and downloads none.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import REDUCED_MINI, REPO

from codeact_lib.config import load_profile
from codeact_lib.pipeline.stages import STAGES

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: apt install chromium"),
    pytest.mark.skipif(shutil.which("make") is None, reason="no make on the PATH"),
    pytest.mark.timeout(900),
]

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WINDOW = {"width": 1280, "height": 1400}
SCREENSHOTS = os.environ.get("CODEACT_SCREENSHOTS")
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

PANEL = ".jp-WindowedPanel-outer"  # what scrolls
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText)"
ERRORS = "[...document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.error\"]')].map(e => e.innerText)"
ENDED = f"() => ({PROMPTS}).every(text => /\\[\\d+\\]/.test(text)) || ({ERRORS}).length > 0"
PICTURES = """[...document.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output svg')].map(
    picture => picture.naturalWidth ?? picture.clientWidth)"""


# ---------------------------------------------------------------------------------------------- a clone, a server


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The repository, linked, with a reduced mini written into the parameters of each notebook, as a reader would."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "codeact_lib", "docs"):
        (folder / name).symlink_to(REPO / name)
    for name in ("notebooks", "results"):
        (folder / name).mkdir()
    (folder / "results" / "reported").symlink_to(REPO / "results" / "reported")
    quicker = {"n_rows_limit": 100, "per_device_train_batch_size": 4, "save_steps": 100, "logging_steps": 1}
    reduced = load_profile("mini", REDUCED_MINI | quicker).model_dump()
    (folder / "reduced.yaml").write_text(yaml.safe_dump(reduced, sort_keys=False), encoding="utf-8")
    for stage in STAGES:
        notebook = nbformat.read(REPO / "notebooks" / f"{stage}.ipynb", as_version=nbformat.NO_CONVERT)
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        cell.source = re.sub(r'^profile = "mini"', 'profile = "reduced.yaml"', cell.source, flags=re.MULTILINE)
        assert '"reduced.yaml"' in cell.source
        nbformat.write(notebook, folder / "notebooks" / f"{stage}.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(clone, tmp_path_factory):
    """``(url, token)`` of a JupyterLab that `make lab` started, with folders and settings of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    for name, settings in SETTINGS.items():
        path = home / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # figures are shown inline
    environment |= {f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("config", "data", "runtime")}
    environment |= {"IPYTHONDIR": str(home / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = ["make", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", "lab"]
    command += ["LAB_ARGS=--no-browser --ServerApp.port=0"]  # 0: a free port, chosen by the system
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=clone, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _address(server, home)
    finally:
        _stop(server)


def _address(server, home):
    deadline = time.monotonic() + 120
    while not (found := list((home / "runtime").glob("jpserver-*.json"))):
        assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.2)
    facts = json.loads(found[0].read_text())
    assert facts["token"], "a server without a token is open to everybody on this machine"
    return facts["url"], facts["token"]


def _stop(server):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)  # JupyterLab stops its kernels, then itself
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, lab):
    url, token = lab
    headers = {"Authorization": f"token {token}"}
    with browser.new_context(viewport=WINDOW) as context:
        yield context.new_page()
        for kernel in context.request.get(f"{url}api/kernels", headers=headers).json():
            context.request.delete(f"{url}api/kernels/{kernel['id']}", headers=headers)  # half a gigabyte each


# ---------------------------------------------------------------------------------------------- what a reader sees


@pytest.mark.parametrize("stage", STAGES)  # in their order: each reads what the ones before it saved
def test_run_all_cells_shows_figures_and_no_error(stage, page, lab):
    url, token = lab
    page.goto(f"{url}doc/tree/{stage}.ipynb?token={token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(ENDED, timeout=400_000)
    take_pictures(page, stage)
    assert page.evaluate(ERRORS) == []
    pictures = page.evaluate(PICTURES)
    assert pictures and all(width > 0 for width in pictures), "a figure is missing or empty"
    assert "done in" in page.locator(".jp-CodeCell").last.inner_text()


def take_pictures(page, name):
    """The notebook from top to bottom, a window at a time, in the folder that CODEACT_SCREENSHOTS names."""
    if not SCREENSHOTS:
        return
    scroll = f"top => (document.querySelector('{PANEL}').scrollTop = top)"
    height, step = page.evaluate(f"[document.querySelector('{PANEL}').scrollHeight, {WINDOW['height']} - 150]")
    for number, top in enumerate(range(0, height - step // 2, step), 1):
        page.evaluate(scroll, top)
        page.wait_for_timeout(100)  # it is drawn
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{number:02d}.png")
