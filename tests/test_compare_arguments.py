"""examples/compare.py with wrong arguments, wrong data, and no data."""

import pytest
from support.processes import run_python
from test_compare import COMPARE

NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: must be an integer >= 1. Received: 0"),
        (["--epochs", "1.5"], "--epochs: must be an integer >= 1. Received: 1.5"),
        (["--epochs", "3", "--quick"], "--quick: not allowed with argument --epochs"),
        (["--batch-size", "0"], "--batch-size: must be an integer >= 1. Received: 0"),
        (
            ["--learning-rate", "-0.1"],
            "--learning-rate: must be a finite number > 0. Received: -0.1",
        ),
        (["--learning-rate", "nan"], "--learning-rate: must be a finite number > 0. Received: nan"),
        (["--learning-rate", "inf"], "--learning-rate: must be a finite number > 0. Received: inf"),
        (
            ["--learning-rate", "fast"],
            "--learning-rate: must be a finite number > 0. Received: fast",
        ),
        (["--epsilon", "-0.1"], "--epsilon: must be a finite number >= 0. Received: -0.1"),
        (["--seed", "-1"], "--seed: must be an integer in [0, 2**31). Received: -1"),
        (["--seeds", "0"], "--seeds: must be an integer >= 1. Received: 0"),
        (["--dataset", "iris"], "--dataset: invalid choice: 'iris'"),
        (["--data", "x.dat"], "--data: needs --dataset airfoil. Received: diabetes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused(compare, tmp_path, capsys, arguments, message):
    logdir = tmp_path / "logs"
    with pytest.raises(SystemExit) as refused:
        compare.main([*arguments, "--logdir", str(logdir)])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not logdir.exists()


def test_folder_that_cannot_be_written_to_is_refused(compare, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as refused:
        compare.main(["--logdir", str(tmp_path / "file" / "logs")])
    assert refused.value.code == 2
    assert (
        f"--logdir: cannot write to {tmp_path / 'file' / 'logs'}: Not a" in capsys.readouterr().err
    )


@pytest.mark.parametrize("by", ["--data", "$KERAS_YOGI_DATA"])
@pytest.mark.parametrize("given", ["missing.dat", "empty folder", "wrong.dat"])
def test_data_that_is_not_the_airfoil_file_is_refused(
    compare, monkeypatch, tmp_path, capsys, given, by
):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "wrong.dat").write_text("1\t2\t3\t4\t5\t6\n")
    arguments = ["--dataset", "airfoil"]
    if by == "--data":
        arguments += ["--data", str(tmp_path / given)]
    else:
        monkeypatch.setenv("KERAS_YOGI_DATA", str(tmp_path / given))
    with pytest.raises(SystemExit) as refused:
        compare.main(arguments)
    assert refused.value.code == 2
    message = capsys.readouterr().err
    if given == "wrong.dat":
        assert f"SHA-1 must be {compare.jobs.AIRFOIL_SHA1}" in message
    else:
        assert f"cannot read {tmp_path / given}" in message
        assert "No such file or directory" in message


@pytest.mark.slow
def test_without_file_and_network_the_error_says_how_to_give_the_file(tmp_path):
    finished = run_python(
        COMPARE,
        "--dataset",
        "airfoil",
        cwd=tmp_path,
        KERAS_YOGI_DATA="",
        KERAS_HOME=str(tmp_path / "keras"),  # so that no cached download is found
        **NO_NETWORK,
    )
    assert finished.returncode == 2
    assert "cannot download airfoil_self_noise.dat" in finished.stderr
    assert "with --data or $KERAS_YOGI_DATA" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "logs").exists()
