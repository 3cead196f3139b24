"""JupyterLab and the gallery in a real browser, as a reader meets them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import urlsplit

import nbformat
import pytest

from afp.figures import gallery
from afp.paths import ROOT
from afp.workbook import NOTEBOOKS

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
INSIDE = ("data", "blob", "chrome")  # asked of nobody
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.chrome.service.Service(DRIVER)
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


def requested(browser) -> set[str]:
    """Scheme and host of everything that the pages asked for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    parts = [urlsplit(url) for url in urls]
    return {f"{part.scheme}://{part.hostname or ''}" for part in parts if part.scheme not in INSIDE}


@pytest.fixture
def lab(tmp_path, few_manifest):
    """JupyterLab as `make lab` starts it, on a copy of the notebooks, the first of few images; its address."""
    copies = shutil.copytree(NOTEBOOKS, tmp_path / "work" / "notebooks")
    first = nbformat.read(copies / "00_start_here.ipynb", as_version=4)
    (parameters,) = [c for c in first.cells if "parameters" in c.metadata.get("tags", [])]
    few = f'demo_manifest = "{few_manifest}"'
    parameters.source = parameters.source.replace('demo_manifest: str = ""', few)
    for cell in first.cells:  # outputs of an earlier run would pass for this one's
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    nbformat.write(first, copies / "00_start_here.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | places | {"JUPYTER_CONFIG_PATH": str(ROOT / ".jupyter")}
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={tmp_path / 'work'}"]
    command += ["--no-browser", "--allow-root", f"--ServerApp.port={port}", "--IdentityProvider.token=t"]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(300):
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t", timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks/00_start_here.ipynb?token=t"
        finally:
            server.terminate()  # ends the kernels too
            server.wait(30)


def test_the_first_notebook_runs_in_jupyterlab(lab, browser):
    browser.get(lab)
    wait = WebDriverWait(browser, 240)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell"))
    kernel, idle = ".jp-Toolbar-kernelName", ".jp-Notebook-ExecutionIndicator[data-status=idle]"
    wait.until(lambda b: "Python 3" in b.find_element(By.CSS_SELECTOR, kernel).text)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, idle))
    assert not browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog, .Toastify__toast"), "something pops up"
    _menu(browser, "Run", "Run All Cells")
    prompts = "return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
    wait.until(lambda b: all(text.strip("[]:").isdigit() for text in b.execute_script(prompts)))
    errors = browser.find_elements(By.CSS_SELECTOR, "[data-mime-type='application/vnd.jupyter.error']")
    assert not errors, errors[0].text
    widths = "return [...document.querySelectorAll('.jp-OutputArea img')].map(i => i.naturalWidth)"
    assert max(browser.execute_script(widths)) > 300
    _move_a_slider(browser, wait)
    assert requested(browser) == {"http://127.0.0.1"}


def _move_a_slider(browser, wait) -> None:
    answers = "return [...document.querySelectorAll('.widget-html-content')].map(e => e.textContent)"
    wait.until(lambda b: any("P(fake)" in text for text in b.execute_script(answers)))
    before = browser.execute_script(answers)
    handle = browser.find_elements(By.CSS_SELECTOR, ".widget-slider .noUi-handle")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    handle.send_keys(Keys.END)
    wait.until(lambda b: "blur:3" in " ".join(b.execute_script(answers)))
    assert browser.execute_script(answers) != before


def _menu(browser, menu: str, item: str) -> None:
    for selector, text in ((".lm-MenuBar-itemLabel", menu), (".lm-Menu-itemLabel", item)):
        found = [e for e in browser.find_elements(By.CSS_SELECTOR, selector) if e.text == text]
        found[0].click()


def test_the_gallery_needs_no_network_and_fits_a_phone(browser, tmp_path):
    (tmp_path / "executed").mkdir()
    for path in (NOTEBOOKS / "00_start_here.ipynb", NOTEBOOKS / "04_evaluate_held_out.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        long = nbformat.v4.new_output("stream", text="a long line " * 50)
        notebook.cells.append(nbformat.v4.new_code_cell("x = " + "1 + " * 99 + "1", outputs=[long]))
        nbformat.write(notebook, tmp_path / "executed" / path.name)
    index = gallery.build_gallery(tmp_path / "executed", tmp_path / "gallery", ROOT / "figures")
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for page in sorted(index.parent.glob("*.html")):
        browser.get(page.as_uri())
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360, f"{page.name} is {width} pixels wide"
    assert requested(browser) == {"file://"}
    browser.get(index.as_uri())
    browser.find_element(By.CSS_SELECTOR, ".card h2 a").click()
    assert "Start here" in browser.find_element(By.TAG_NAME, "h1").text
