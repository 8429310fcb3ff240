"""Runs the README's line, and takes TensorBoard's picture of its runs: docs/tensorboard.png.

docs/compare.png is the picture that the same run draws. Needs playwright and Chromium: pip install
playwright, and a `chromium` on the path.

    python docs/screenshots.py
"""

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

from playwright.sync_api import sync_playwright
from tensorboard import program

PICTURE = Path(__file__).with_name("tensorboard.png")
TAGS = "optimizer/(effective_lr_(median|max)|signal_to_noise|update_to_weight)"
RUNS = r"^keras_yogi\.(Adam|Yogi)$"
EXAMPLE = Path(__file__).parents[1] / "examples" / "compare.py"
SETTINGS = {
    "timeSeriesSettingsPaneOpened": False,
    "timeSeriesCardMinWidth": 480,
    "stepSelectorEnabled": False,
    "ignoreOutliers": False,
}
"""Of TensorBoard's page, kept by the browser: two cards a row, their titles whole."""


def photograph(url: str, picture: Path) -> None:
    """Opens TensorBoard's page of scalars, and saves it when its cards are drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1360, "height": 845})
        kept = json.dumps(json.dumps(SETTINGS))
        page.add_init_script(f"localStorage.setItem('_tb_global_settings', {kept})")
        shown = urllib.parse.urlencode(
            {"darkMode": "false", "smoothing": 0, "tagFilter": TAGS, "runFilter": RUNS}
        )
        page.goto(f"{url}?{shown}#timeseries")
        page.wait_for_selector("scalar-card line-chart", timeout=60_000)
        page.wait_for_timeout(4000)  # the lines are animated
        page.screenshot(path=str(picture))
        browser.close()


def main() -> None:
    """Trains, serves, photographs."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, EXAMPLE, "--logdir", folder], check=True)
        shutil.copy(Path(folder) / "curves.png", PICTURE.with_name("compare.png"))
        board = program.TensorBoard()
        board.configure(logdir=folder, host="127.0.0.1", port=0, load_fast="false")
        photograph(board.launch(), PICTURE)
    print(f"Written: {PICTURE} and compare.png beside it")


if __name__ == "__main__":
    main()
