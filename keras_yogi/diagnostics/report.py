"""keras_yogi.diagnose: an optimizer's figures as a table in Python."""

import html
from typing import Any

import keras

from keras_yogi import checks
from keras_yogi.diagnostics import advice
from keras_yogi.diagnostics.gauge import Gauge, Reading

_COLUMNS = {
    "weights": "weight_norm",
    "update/weights": "update_to_weight_ratio",
    "rate, median": "effective_learning_rate_median",
    "rate, p99.9": "effective_learning_rate_p99_9",
    "rate, max": "effective_learning_rate_max_touched",
    "√v̂ < ε": "epsilon_share",
    "v = v₀": "initial_velocity_share",
    "|m̂|/√v̂": "signal_to_noise_median",
}
"""What a terminal has room for; "rate" is the effective learning rate, the largest that of a
weight that a gradient has reached.
"""

_MODEL = "(whole model)"


class Report:
    """An optimizer's figures at one moment. Prints as a table; in a notebook, as HTML.

    Attributes:
        step: steps that the optimizer had made.
        model: the figures of all weights together, by name.
        variables: for each variable's path its figures, by name.
        warnings: what is wrong, one sentence each; empty if nothing is.
        notes: what cannot be told, one sentence each.
    """

    def __init__(self, gauge: Gauge, reading: Reading, since: "Report | None" = None) -> None:
        self._high_rates = advice.high_rates(reading)
        earlier = {} if since is None else since._high_rates
        self.step = reading.step
        self.model = model_figures(reading)
        self.variables: dict[str, dict[str, float]] = {
            name: {
                **{
                    figure: float(values[place])
                    for figure, values in reading.of_variables.items()
                    if reading.told[figure][place]
                },
                **_rows(reading, place),
            }
            for place, name in enumerate(reading.names)
        }
        self.warnings = advice.warnings(gauge, reading, earlier)
        self.notes = gauge.missing

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain Python types: what `json.dumps` takes, but for NaN and infinity."""
        return {
            "step": self.step,
            "model": dict(self.model),
            "variables": {name: dict(figures) for name, figures in self.variables.items()},
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per variable and a column per figure.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("`to_dataframe` needs pandas: pip install pandas") from error
        frame = pd.DataFrame.from_dict(self.variables, orient="index")
        return frame.rename_axis("variable")

    def _table(self) -> list[list[str]]:
        rows = [["", *_COLUMNS]]
        for name, figures in [*self.variables.items(), (_MODEL, self.model)]:
            rows.append([name, *(_number(figures.get(each)) for each in _COLUMNS.values())])
        return rows

    def _heading(self) -> str:
        rates = [f"{n} {v:.3g}" for n, v in self.model.items() if n.startswith("learning_rate")]
        return f"After {self.step:,} steps; {', '.join(rates)}"

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        sentences = [*(f"! {w}" for w in self.warnings), *(f"- {n}" for n in self.notes)]
        return "\n".join([self._heading(), "", *lines, *([""] if sentences else []), *sentences])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = self._table()
        columns = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        rows = "".join(
            f"<tr><th>{html.escape(row[0])}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in body
        )
        sentences = "".join(f"<li>{html.escape(s)}</li>" for s in [*self.warnings, *self.notes])
        return (
            f"<p>{html.escape(self._heading())}</p><table><thead><tr>{columns}</tr></thead>"
            f"<tbody>{rows}</tbody></table><ul>{sentences}</ul>"
        )


def diagnose(optimizer: keras.optimizers.Optimizer, since: Report | None = None) -> Report:
    """What the optimizer does now, derived from its slots alone.

    Args:
        optimizer: `keras_yogi.Adam`, `keras_yogi.Yogi` or any other Keras optimizer, built; one in
            a keras.optimizers.LossScaleOptimizer or MultiOptimizer too. Of optimizers other than
            ours and Keras's Adam and AdamW only norms can be told.
        since: an earlier report on the same optimizer, to warn of effective learning rates that
            have grown since then. Defaults to None.

    Returns:
        A `Report`: `print` it, read `report.model["update_norm"]`,
        `report.variables["dense/kernel"]` and `report.warnings`, or convert it with `to_dict()`
        or `to_dataframe()`. docs/tensorboard.md defines every figure and every warning. Medians
        and percentiles of a model of more than 2²⁰ weights are taken of a sample, of at least
        16,384 weights of each variable; everything else is of all weights.

    Raises:
        ValueError: `optimizer` is not a Keras optimizer, or is not built; `since` is not a report.

    Example:
        >>> import keras, keras_yogi, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="out")])
        >>> model.compile(optimizer=keras_yogi.Adam(0.01), loss="mse")
        >>> _ = model.fit(np.ones((64, 3)), np.ones((64, 1)), verbose=0)
        >>> report = keras_yogi.diagnose(model.optimizer)
        >>> report.step
        2
        >>> sorted(report.variables)
        ['out/bias', 'out/kernel']

    References:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015: section 2.1 on the
        effective step and the signal-to-noise ratio.
        Zaheer, Reddi, Sachan, Kale & Kumar, "Adaptive Methods for Nonconvex Optimization",
        NeurIPS 2018: section 3 on effective learning rates that grow too fast.
    """
    checks.not_of_keras_2("optimizer", optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise checks.reject("optimizer", "a Keras optimizer", optimizer)
    if since is not None and not isinstance(since, Report):
        raise checks.reject("since", "a report of `keras_yogi.diagnose` or None", since)
    if not optimizer.built:
        rule = "built: train a step, or call `optimizer.build(variables)`, first"
        raise checks.reject("optimizer", rule, optimizer)
    gauge = Gauge(optimizer)
    return Report(gauge, gauge.read(), since)


def model_figures(reading: Reading) -> dict[str, float]:
    """What is told of the whole model, by name."""
    several = len(reading.learning_rates) > 1
    rates = {
        f"learning_rate_{name}" if several else "learning_rate": rate
        for name, rate in reading.learning_rates.items()
    }
    figures = {**rates, **reading.of_model, "skipped_steps": float(reading.skipped_steps)}
    if reading.untouched_rows:
        figures["untouched_rows"] = float(sum(n for n, _ in reading.untouched_rows.values()))
    return figures


def _rows(reading: Reading, place: int) -> dict[str, float]:
    rows = reading.untouched_rows.get(place)
    return {} if rows is None else {"untouched_rows": float(rows[0])}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
