"""Trains an Adam and a Yogi run, and takes TensorBoard's picture of both: docs/tensorboard.png.

Needs playwright and Chromium: pip install playwright, and a `chromium` on the path.

    python docs/screenshots.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import shutil
import tempfile
import urllib.parse
from pathlib import Path

import keras
import numpy as np
from playwright.sync_api import sync_playwright
from tensorboard import program

import keras_yogi

PICTURE = Path(__file__).with_name("tensorboard.png")
TAGS = "optimizer/(effective_lr_(median|max)|signal_to_noise|update_to_weight)"
SETTINGS = {
    "timeSeriesSettingsPaneOpened": False,
    "timeSeriesCardMinWidth": 480,
    "stepSelectorEnabled": False,
    "ignoreOutliers": False,
}
"""Of TensorBoard's page, kept by the browser: two cards a row, their titles whole."""


def train(folder: Path) -> None:
    """A small vocabulary, a few words of which are rare: where the two optimizers differ."""
    random = np.random.default_rng(0)
    x = np.minimum(random.geometric(0.1, size=(2048, 8)), 60)
    y = np.sin(x.sum(axis=1, keepdims=True) / 9).astype("float32")
    for name, optimizer in {
        "adam": keras_yogi.Adam(0.01, beta_2=0.99),
        "yogi": keras_yogi.Yogi(0.01, beta_2=0.99),
    }.items():
        keras.utils.set_random_seed(0)
        layers = [
            keras.layers.Embedding(64, 8, name="embed"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(1, name="out"),
        ]
        model = keras.Sequential([keras.Input((8,), dtype="int32"), *layers])
        model.compile(optimizer=optimizer, loss="mse")
        callback = keras_yogi.TensorBoard(folder / name, optimizer_freq=4, write_graph=False)
        model.fit(x, y, batch_size=32, epochs=8, callbacks=[callback], verbose=0)


def photograph(url: str, picture: Path) -> None:
    """Opens TensorBoard's page of scalars, and saves it when its cards are drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1360, "height": 845})
        kept = json.dumps(json.dumps(SETTINGS))
        page.add_init_script(f"localStorage.setItem('_tb_global_settings', {kept})")
        shown = urllib.parse.urlencode(
            {"darkMode": "false", "smoothing": 0, "tagFilter": TAGS, "runFilter": "^(adam|yogi)$"}
        )
        page.goto(f"{url}?{shown}#timeseries")
        page.wait_for_selector("scalar-card line-chart", timeout=60_000)
        page.wait_for_timeout(4000)  # the lines are animated
        page.screenshot(path=str(picture))
        browser.close()


def main() -> None:
    """Trains, serves, photographs."""
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        board = program.TensorBoard()
        board.configure(logdir=folder, host="127.0.0.1", port=0, load_fast="false")
        photograph(board.launch(), PICTURE)
    print(f"Written: {PICTURE}")


if __name__ == "__main__":
    main()
