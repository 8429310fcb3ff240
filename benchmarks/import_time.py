"""How much longer `import keras_yogi` takes than `import keras`.

Each import runs in a process of its own; the two take turns.

    python benchmarks/import_time.py
"""

import subprocess
import sys

import _timing


def importing(name: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True, capture_output=True)


def main() -> None:
    parser = _timing.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="imports of each")
    options = parser.parse_args()
    names = {"import keras": "keras", "import keras_yogi": "keras_yogi"}
    steps = {title: lambda name=name: importing(name) for title, name in names.items()}
    for step in steps.values():  # files into the cache
        step()
    times = _timing.interleaved(steps, 2 if options.quick else options.rounds)
    results = _timing.summary(times, "import keras", "import keras")
    _timing.report(
        "Import",
        results,
        {
            "ms": lambda r: f"{r['ms']:.0f}",
            "quartiles": lambda r: f"{r['ms_quartile_1']:.0f} to {r['ms_quartile_3']:.0f}",
            "of import keras": lambda r: f"{r['import keras']:.3f}",
        },
    )
    _timing.write(options.output, "import_time", {"import": results}, "ms", "ms (log scale)")


if __name__ == "__main__":
    main()
