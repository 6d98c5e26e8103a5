"""Take the pictures of docs/compare.md from a real MLflow UI in a real browser.

``python scripts/take_screenshots.py`` runs the quantize recipe on the starter model with three
schemes, which takes a quarter of an hour, starts ``mlflow ui`` on what they logged, and drives a
headless Chromium with Playwright (``pip install playwright``, and ``playwright install chromium``
or ``--chromium`` with the path of an installed one). ``--keep FOLDER`` leaves the store there;
where it has the runs already, they are not made again. ``--address`` takes the pictures of a server
that runs already on that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_LARGEST = 300_000
_WAIT_MS = 180_000
_FIRST = quote('["1"]')  # the experiment after "Default"
# The panel that opens by itself on somebody's very first visit.
_NO_ASSISTANT = """
try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
} catch (error) { /* about:blank has no storage */ }
"""

_EXPERIMENT = "quantize SmolLM2-135M"
_SCHEMES = ("int8-weight-only", "int4-weight-only", "int8-dynamic")


def make_store() -> dict[str, str]:
    """Runs of the recipe by scheme, made where the current store has none."""
    import mlflow
    from mlflow import MlflowClient

    from mlflow_degrade import QuantizeOptions, quantize_and_gate

    experiment = mlflow.set_experiment(_EXPERIMENT).experiment_id
    runs = {}
    for scheme in _SCHEMES:
        done = MlflowClient().search_runs(
            [experiment],
            f"tags.`degrade.scheme` = '{scheme}' and tags.`degrade.verdict` LIKE '%' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
        )
        runs[scheme] = (
            done[0].info.run_id
            if done
            else quantize_and_gate(QuantizeOptions(scheme=scheme)).run_id
        )
    return runs


@contextmanager
def mlflow_ui(folder: Path) -> Iterator[str]:
    """``mlflow ui`` on the store in a folder; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit((folder / "ui.log").read_text()) from None
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


class Camera:
    """A browser that looks at one MLflow server.

    Parameters
    ----------
    page : playwright.sync_api.Page
    address : str
    target : Path
        Where pictures go.
    """

    def __init__(self, page: Any, address: str, target: Path) -> None:
        self.page, self.address, self.target = page, address, target

    def open(self, route: str, *, wait: str) -> None:
        """Go to a route of the single-page application and wait for a text."""
        self.page.goto("about:blank")  # a changed fragment alone would not load the page again
        self.page.goto(f"{self.address}/#{route}")
        self.page.get_by_text(wait).first.wait_for(timeout=_WAIT_MS)

    def take(self, name: str, **options: Any) -> None:
        """Write a picture, reduced to a palette."""
        from io import BytesIO

        from PIL import Image

        self.page.wait_for_timeout(3_000)  # charts and frames are drawn after the texts
        picture = Image.open(BytesIO(self.page.screenshot(**options))).convert("RGB")
        path = self.target / name
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        size = path.stat().st_size
        if size > _LARGEST:
            raise SystemExit(f"{path}: {size} bytes, more than {_LARGEST}")
        print(f"{path}: {size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--target", type=Path, default=IMAGES)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--only", nargs="*", help="names of pictures")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    options.target = options.target.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        runs = make_store()
        with nullcontext(options.address) if options.address else mlflow_ui(folder) as address:
            photograph(address, runs, options)


def photograph(address: str, runs: dict[str, str], options: argparse.Namespace) -> None:
    """Take every picture, or those asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(_WAIT_MS)
        page.add_init_script(_NO_ASSISTANT)
        camera = Camera(page, address, options.target)
        for picture in PICTURES:
            if not options.only or picture.__name__ in options.only:
                picture(camera, runs)
        browser.close()


def verdicts(camera: Camera, runs: dict[str, str]) -> None:  # noqa: ARG001
    """The saved view of verdicts: the list of runs."""
    camera.page.set_viewport_size({"width": 1720, "height": 700})
    camera.open("/experiments/1/runs?viewStateShareKey=degrade-verdicts", wait="degrade.guilty")
    camera.take("ui-verdicts.png", clip={"x": 198, "y": 8, "width": 1516, "height": 420})


def speed(camera: Camera, runs: dict[str, str]) -> None:  # noqa: ARG001
    """The saved view of charts: which candidate is fast and not worse."""
    view = "viewStateShareKey=degrade-speed&compareRunsMode=CHART"
    camera.page.set_viewport_size({"width": 1500, "height": 860})
    camera.open(f"/experiments/1/runs?{view}", wait="relative/size vs. degrade")
    camera.page.locator(".scatterlayer .point").first.wait_for()
    camera.take("ui-speed.png", clip={"x": 198, "y": 100, "width": 1292, "height": 610})


def run_page(camera: Camera, runs: dict[str, str]) -> None:
    """The run page: the note says why, and which tasks."""
    _note(camera, runs["int4-weight-only"])
    camera.take("ui-run.png", clip={"x": 198, "y": 8, "width": 1074, "height": 860})


def next_step(camera: Camera, runs: dict[str, str]) -> None:
    """Further down in the note: what to do now."""
    _note(camera, runs["int4-weight-only"])
    command = camera.page.get_by_text("mlflow run recipes/quantize").first
    command.scroll_into_view_if_needed()
    top = command.bounding_box()["y"]
    camera.take("ui-next.png", clip={"x": 198, "y": top - 60, "width": 760, "height": 110})


def version(camera: Camera, runs: dict[str, str]) -> None:  # noqa: ARG001
    """A registered version is a model card, also in a narrow window."""
    from mlflow import MlflowClient

    newest = max(MlflowClient().search_model_versions(), key=lambda v: int(v.version))
    camera.page.set_viewport_size({"width": 1000, "height": 1000})
    camera.open(f"/models/{newest.name}/versions/{newest.version}", wait="verify models:/")
    camera.take("ui-version.png", clip={"x": 198, "y": 8, "width": 794, "height": 960})


def report(camera: Camera, runs: dict[str, str]) -> None:
    """The report of a FAIL: real or noise, and where."""
    import mlflow

    text = mlflow.artifacts.load_text(f"runs:/{runs['int4-weight-only']}/report.html")
    camera.page.set_viewport_size({"width": 1000, "height": 1000})
    camera.page.goto("about:blank")
    camera.page.set_content(text)
    camera.take("report.png")


def reports(camera: Camera, runs: dict[str, str]) -> None:
    """Further down the same page: the reports beside each other."""
    _compare(camera, [runs["int8-weight-only"], runs["int4-weight-only"]])
    # A click of the mouse would miss: the page scrolls under its own tables.
    camera.page.get_by_text("report.html", exact=True).first.dispatch_event("click")
    camera.page.wait_for_timeout(2_000)
    camera.page.get_by_text("Artifacts", exact=True).last.scroll_into_view_if_needed()
    top = camera.page.get_by_text("Artifacts", exact=True).last.bounding_box()["y"]
    camera.take("ui-reports.png", clip={"x": 198, "y": top - 12, "width": 1082, "height": 260})


def flips(camera: Camera, runs: dict[str, str]) -> None:  # noqa: ARG001
    """The artifact view: what the candidates made of the same questions."""
    camera.page.set_viewport_size({"width": 1500, "height": 1000})
    only = quote("tags.`degrade.verdict` LIKE '%'")
    camera.open(f"/experiments/1/runs?compareRunsMode=ARTIFACT&searchFilter={only}", wait="worse: ")
    camera.page.get_by_placeholder("Filter by sample").fill("numbers")
    camera.take("ui-flips.png", clip={"x": 517, "y": 184, "width": 975, "height": 590})


def candidates(camera: Camera, runs: dict[str, str]) -> None:
    """What ``mlflow-degrade candidates --plot`` draws."""
    from mlflow_degrade.cli import run

    if run(["candidates", *runs.values(), "--plot", str(camera.target / "candidates.png")]):
        raise SystemExit("mlflow-degrade candidates failed")


def _compare(camera: Camera, runs: list[str]) -> None:
    ids = quote(json.dumps(runs))
    camera.open(f"/compare-runs?runs={ids}&experiments={_FIRST}", wait=f"Comparing {len(runs)} ")
    camera.page.get_by_text("Run Name:").first.wait_for()


def _note(camera: Camera, run_id: str) -> None:
    camera.page.set_viewport_size({"width": 1280, "height": 900})
    camera.open(f"/experiments/1/runs/{run_id}", wait="The candidate is worse")
    camera.page.get_by_text("Show more").first.click()


PICTURES: tuple[Callable[[Camera, dict[str, str]], None], ...] = (
    verdicts,
    speed,
    run_page,
    next_step,
    version,
    report,
    reports,
    flips,
    candidates,
)


if __name__ == "__main__":
    main()
