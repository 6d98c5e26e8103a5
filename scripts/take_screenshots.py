"""Take the pictures of docs/compare.md from a real MLflow UI in a real browser.

``python scripts/take_screenshots.py`` makes a store with three candidates of one baseline (decided
by the real tests on made-up samples), starts ``mlflow ui`` on it, and drives a headless Chromium
with Playwright (``pip install playwright``, and ``playwright install chromium`` or ``--chromium``
with the path of an installed one). ``--keep FOLDER`` leaves the store there to look at.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_LARGEST = 300_000
_ITEMS = 1_320
_WAIT_MS = 60_000
_FIRST = quote('["1"]')  # the experiment after "Default"
# The panel that opens by itself on somebody's very first visit.
_NO_ASSISTANT = """
try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
} catch (error) { /* about:blank has no storage */ }
"""

# Per candidate: scheme, right answers lost and wrong ones gained, and its cost.
_SCHEMES: tuple[dict[str, Any], ...] = (
    {"name": "int8-weight-only", "b": 12, "c": 16, "size": 265e6, "prefill": 371, "decode": 46.1},
    {"name": "int4-weight-only", "b": 166, "c": 49, "size": 183e6, "prefill": 317, "decode": 41.3},
    {"name": "int8-dynamic", "b": 60, "c": 50, "size": 330e6, "prefill": 975, "decode": 38.0},
)
_BASELINE_COST = {"size": 539e6, "prefill": 431.0, "decode": 21.0}
_TASKS = ("agreement", "definitions", "geography", "inflection", "numbers", "relations")


def make_store() -> dict[str, str]:
    """Log baseline evaluation and decisions to the current store; returns run ids by scheme."""
    import mlflow

    from mlflow_degrade import GatePolicy, pair
    from mlflow_degrade.registry.register_on_pass import log_conclusion
    from mlflow_degrade.tracking.evaluations import log_finite_metrics
    from mlflow_degrade.tracking.runs import tracked_run

    mlflow.set_experiment("quantize SmolLM2-135M")
    random = np.random.default_rng(5)
    questions = _questions(random)
    questions["score"] = (random.random(len(questions)) < 0.78).astype(float)
    baseline = _samples(questions, "SmolLM2-135M fp32")
    runs = {}
    for scheme in _SCHEMES:
        answers = _flipped(questions, scheme, random)
        candidate = _samples(answers, f"SmolLM2-135M {scheme['name']}")
        name = f"{scheme['name']} of SmolLM2-135M"
        with tracked_run(name, tags={"degrade.kind": "recipe"}) as run:
            mlflow.log_params({"model": "SmolLM2-135M", "scheme": scheme["name"]})
            cost = {"baseline": _cost(_BASELINE_COST), "candidate": _cost(scheme)}
            provenance = {"scheme": scheme["name"], "registered": None}
            log_conclusion(
                pair(baseline, candidate), GatePolicy(), cost=cost, provenance=provenance
            )
            log_finite_metrics({key: value for key, (value, _) in cost["candidate"].items()})
            runs[scheme["name"]] = run.info.run_id
    return runs


def _questions(random: np.random.Generator) -> pd.DataFrame:
    frame = pd.DataFrame({"task": np.resize([f"starter_{t}" for t in _TASKS], _ITEMS)})
    frame = frame.sort_values("task", kind="stable", ignore_index=True)
    frame["doc_id"] = frame.groupby("task").cumcount().astype(str)
    left, right = random.integers(11, 99, (2, _ITEMS))
    pairs = list(zip(left, right, strict=True))
    frame["prompt"] = [f"Question: {a} plus {b} is\nAnswer:" for a, b in pairs]
    frame["target"] = [str(a + b) for a, b in pairs]
    frame["metric"] = "acc"
    frame["feature.prompt_tokens"] = random.integers(12, 180, _ITEMS).astype(float)
    # Questions that are close calls flip in one candidate as in another.
    frame["feature.fragility"] = random.pareto(1.0, _ITEMS)
    return frame


def _flipped(
    questions: pd.DataFrame, scheme: dict[str, Any], random: np.random.Generator
) -> pd.DataFrame:
    """As many right answers lost and wrong ones gained as the scheme says."""
    answers = questions.copy()
    long = (questions["feature.prompt_tokens"] > 130).to_numpy()
    hides = scheme["name"] == "int8-dynamic"  # it loses on long prompts what it gains on others
    for value, count in ((1.0, scheme["b"]), (0.0, scheme["c"])):
        there = questions["score"].to_numpy() == value
        weight = questions["feature.fragility"].to_numpy() * there
        if hides:
            weight = weight * np.where(long == (value == 1.0), 12.0, 1.0)
        elif scheme["name"] == "int4-weight-only" and value == 1.0:
            weight = weight * np.where(questions["task"] == "starter_numbers", 4.0, 1.0)
        chosen = random.choice(len(questions), count, replace=False, p=weight / weight.sum())
        answers.loc[chosen, "score"] = 1.0 - value
    return answers


def _samples(frame: pd.DataFrame, model: str) -> Any:
    from mlflow_degrade import SampleScores
    from mlflow_degrade.core.cache import digest_json

    wrong = [str(int(target) + 10) for target in frame["target"]]
    answer = np.where(frame["score"] == 1.0, frame["target"], wrong)
    table = frame.drop(columns="feature.fragility").assign(response=answer)
    return SampleScores.from_pandas(table, model=model, model_digest=digest_json({"model": model}))


def _cost(figures: dict[str, Any]) -> dict[str, tuple[float, str]]:
    return {
        "size/bytes": (float(figures["size"]), "bytes"),
        "throughput/prefill_tokens_per_second": (float(figures["prefill"]), "tokens/s"),
        "throughput/decode_tokens_per_second": (float(figures["decode"]), "tokens/s"),
    }


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
    parser.add_argument("--only", nargs="*", help="names of pictures")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        here = Path.cwd()
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        runs = make_store()
        os.chdir(here)
        with mlflow_ui(folder) as address:
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


def run_page(camera: Camera, runs: dict[str, str]) -> None:
    """The run page: the note says the verdict, and what would have to change."""
    camera.open(f"/experiments/1/runs/{runs['int8-dynamic']}", wait="These samples do not settle")
    camera.page.get_by_text("Show more").first.click()
    camera.take("ui-run.png", clip={"x": 198, "y": 8, "width": 1074, "height": 740})


def scatter(camera: Camera, runs: dict[str, str]) -> None:
    """The page that compares runs: speed against the change in quality."""
    _compare(camera, list(runs.values()))
    camera.page.get_by_role("tab", name="Scatter Plot").click()
    for axis, metric in (("x", "relative/throughput/decode"), ("y", "degrade/delta_pp")):
        camera.page.locator(f"#{axis}-axis-selector").click()
        camera.page.get_by_role("option", name=metric, exact=True).first.click()
    camera.page.mouse.move(640, 700)
    camera.take("ui-scatter.png", clip={"x": 198, "y": 40, "width": 1082, "height": 600})


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
    camera.open("/experiments/1/runs?compareRunsMode=ARTIFACT", wait="worse: ")
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


PICTURES: tuple[Callable[[Camera, dict[str, str]], None], ...] = (
    run_page,
    scatter,
    reports,
    flips,
    candidates,
)


if __name__ == "__main__":
    main()
