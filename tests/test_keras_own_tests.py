"""Keras's own tests of its Adam, with keras_yogi.Adam in its place.

Keras installs them from some version on; where it does not, there is nothing to run.
"""

import importlib.util
import re
from pathlib import Path

import pytest
from support.scripts import run_pytest

pytestmark = pytest.mark.slow

OPTIMIZERS = Path(importlib.util.find_spec("keras").origin).parent / "src" / "optimizers"
FILES = [OPTIMIZERS / f"{name}_test.py" for name in ("adam", "optimizer", "optimizer_sparse")]
# Of the other optimizers' cases of the same tests, none.
SPARSE = "OptimizerSparseTest and _adam and not _adamw"
# test_sparse_gradients watches that every value is stored through `Optimizer.assign`. Our engines
# know no optimizer; test_sparse_update shows that rows alone are written.
ABOUT_ADAM = f"AdamTest or OptimizerTest or ({SPARSE} and not test_sparse_gradients)"


@pytest.mark.skipif(not all(f.exists() for f in FILES), reason="not installed with this Keras")
@pytest.mark.parametrize("fused", ["false", "true"])
def test_keras_tests_pass_with_our_adam(fused, tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = run_pytest(
        *("-q", "-c", tmp_path / "pytest.ini", "-p", "support.keras_yogi_in_place"),
        *("-p", "no:cacheprovider", "-k", ABOUT_ADAM, *FILES),
        cwd=tmp_path,
        IN_PLACE_FUSED=fused,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    made = int(re.search(r"(\d+) optimizers made", run.stdout)[1])
    passed = int(re.search(r"(\d+) passed", run.stdout)[1])
    assert made >= 20, run.stdout  # they are indeed ours
    assert passed >= 30, run.stdout
