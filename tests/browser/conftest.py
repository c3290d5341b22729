"""A real JupyterLab in a real headless Chromium, shut off from the user's settings and from the network."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 120_000
"""A browser, a server and a kernel share what may be two busy cores."""

ROOT = Path(__file__).parents[2]


class Lab:
    """A running server: its folder of notebooks, its address and its token."""

    def __init__(self, home: Path) -> None:
        self.folder, self.token = home / "notebooks", secrets.token_hex(16)
        self.folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = home / "lab.log"
        self._process = self._start(home)

    def _start(self, home: Path) -> subprocess.Popen:
        places = {
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        quiet = {
            "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
            "@jupyterlab/completer-extension:manager": {"autoCompletion": False},
        }
        (home / "config" / "labconfig").mkdir(parents=True)
        (home / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(quiet))
        environment = os.environ | {name: str(home / place) for name, place in places.items()}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests/unit"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={self.port}"]
        command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={self.folder}", "--ServerApp.port_retries=0"]
        command += [f"--IdentityProvider.token={self.token}", "--LabApp.expose_app_in_browser=True"]
        with self.log.open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait_until_up(self, seconds: float = 60) -> None:
        """Return when the server answers; fail with its log otherwise."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status?token={self.token}", timeout=2).close()
                return
            except OSError:
                time.sleep(0.3)
        pytest.fail(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def url(self, notebook: str) -> str:
        """Return the address that opens a notebook of the folder in a fresh workspace."""
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?reset&token={self.token}"

    def stop(self) -> None:
        """End the server and its kernels: the process group that was started here."""
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory):
    """One server for all browser tests; none is started where there is no browser."""
    server = Lab(tmp_path_factory.mktemp("lab"))
    server.wait_until_up()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chromium():
    """One headless browser for all browser tests."""
    if CHROMIUM is None:
        pytest.skip(
            "no chromium on the PATH; install it with the system's package manager, e.g. apt-get install chromium"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page of its own profile that records which hosts it asked and what its console complained of."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.hosts = set()
    page.errors = []
    page.on("request", lambda request: page.hosts.add(re.sub(r"^\w+://([^/:?]*).*$", r"\1", request.url)))
    # anywidget reports a widget that took more than 2 s to start, as on a busy machine; it starts nevertheless.
    late = "Failed to initialize model"
    page.on("pageerror", lambda error: page.errors.append(str(error)) if late not in str(error) else None)
    yield page
    context.close()


class Driver:
    """What every browser test does with a notebook on a page."""

    def __init__(self, lab: Lab, page) -> None:
        self.lab, self.page = lab, page

    def write(self, name: str, *cells: str) -> None:
        """Put a notebook of code cells into the server's folder."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.lab.folder / name)

    def open(self, name: str, *, kernel: bool = True) -> None:
        """Open a notebook and return when its kernel is idle, or when its cells are there."""
        self.page.goto(self.lab.url(name), wait_until="commit")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        if kernel:
            self.page.wait_for_function(
                "[...document.querySelectorAll('.jp-StatusBar-TextItem')].some((e) => /\\| Idle/.test(e.textContent))"
            )
        self.page.evaluate("jupyterapp.shell.collapseLeft()")

    def open_shipped(self, name: str) -> None:
        """Open a copy of a shipped notebook, beside copies of the data that notebooks read by path."""
        for part in ("examples", "results"):
            shutil.copytree(ROOT / "data_samples" / part, self.lab.folder / "data_samples" / part, dirs_exist_ok=True)
        (self.lab.folder / "notebooks").mkdir(exist_ok=True)
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        for cell in notebook.cells:
            # What is seen shall come from this run.
            cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
        nbformat.write(notebook, self.lab.folder / "notebooks" / name)
        self.open(f"notebooks/{name}")

    def start_all(self) -> None:
        """Begin to run all cells and return at once, to look at what grows; `run_all` then waits for the same run."""
        self.page.evaluate("window.running = jupyterapp.commands.execute('notebook:run-all-cells'), null")

    def run_all(self) -> None:
        """Run all cells, return when they are done, and fail with what an erring cell said."""
        self.page.evaluate("window.running ??= jupyterapp.commands.execute('notebook:run-all-cells'), null")
        self.page.evaluate("async () => { await window.running; window.running = undefined; }")
        errors = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
        said = [text for text in errors.all_inner_texts() if "Traceback" in text or "Error" in text]
        assert not said, said[0][-2000:]

    def run_above(self, text: str) -> None:
        """Run the cells above the first one that holds a text, and wait for them."""
        index = "[...notebook.model.cells].findIndex((cell) => cell.sharedModel.source.includes(text))"
        self.page.evaluate(
            "async (text) => { const notebook = jupyterapp.shell.currentWidget.content;"
            f" notebook.activeCellIndex = {index};"
            " await jupyterapp.commands.execute('notebook:run-all-above'); }",
            text,
        )

    def picture(self, view, path: Path) -> None:
        """Save a view as a picture, in a window high enough to hold all of it."""
        self.page.set_viewport_size({"width": 1280, "height": 4000})
        view.scroll_into_view_if_needed()
        view.screenshot(path=path)
        self.page.set_viewport_size({"width": 1280, "height": 1000})

    def quiet(self) -> None:
        """Fail where the page asked another machine for something, or where its scripts broke."""
        assert {host for host in self.page.hosts if not host.startswith(("blob:", "data:"))} <= {"127.0.0.1"}
        assert self.page.errors == []

    def command(self, name: str, **arguments) -> None:
        """Carry out one of JupyterLab's commands and wait for its end."""
        self.page.evaluate(
            "async ([name, given]) => { await jupyterapp.commands.execute(name, given); }", [name, arguments]
        )


@pytest.fixture
def driver(lab, page):
    """Drive the page through the server's notebooks."""
    return Driver(lab, page)
