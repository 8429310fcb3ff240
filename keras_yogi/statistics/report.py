"""keras_yogi.diagnose: an optimizer's statistics as a table in Python."""

import html
from typing import Any

import keras

from keras_yogi import checks
from keras_yogi.statistics import advice
from keras_yogi.statistics.collector import Statistics, StatisticsCollector

_COLUMNS = {
    "‖w‖": "weight_norm",
    "‖Δw‖/‖w‖": "update_to_weight_ratio",
    "lr, median": "effective_lr_median",
    "lr, p99.9": "effective_lr_p99_9",
    "lr, max": "effective_lr_max",
    "√v̂ < ε": "epsilon_share",
    "v ≤ 2v₀": "initial_velocity_share",
    "|m̂|/√v̂": "signal_to_noise_median",
}
"""What a terminal has room for."""

_LEGEND = (
    "‖·‖: norm; Δw: the last update; lr: effective learning rate η / (√v̂ + ε). "
    "lr and the columns after it are of the weights that gradients have reached."
)
_MODEL = "(whole model)"


class Report:
    """An optimizer's statistics at one moment. Prints as a table; in a notebook, as HTML.

    Attributes:
        step: steps that the optimizer had made.
        model: the figures of all weights together, by name.
        variables: for each variable's path its figures, by name.
        warnings: what is wrong, one sentence each; empty if nothing is.
        notes: what is left out of the figures, one sentence each.
    """

    def __init__(
        self,
        collector: StatisticsCollector,
        statistics: Statistics,
        since: "Report | None" = None,
    ) -> None:
        self._high_rates = advice.high_rates(collector, statistics)
        earlier = {} if since is None else since._high_rates
        self.step = statistics.step
        self.model = statistics.model
        self.variables = statistics.variables
        self.warnings = advice.warnings(collector, statistics, earlier)
        self.notes = collector.notes

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
            cells = (figures.get(figure) for figure in _COLUMNS.values())
            rows.append([name, *("" if cell is None else f"{cell:.3g}" for cell in cells)])
        return rows

    def _heading(self) -> str:
        rates = [f"{n} {v:.3g}" for n, v in self.model.items() if n.startswith("learning_rate")]
        return f"After {self.step:,} steps; {', '.join(rates)}"

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        sentences = [*(f"! {w}" for w in self.warnings), *(f"- {n}" for n in self.notes)]
        return "\n".join([self._heading(), "", *lines, "", _LEGEND, *sentences])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = [[html.escape(cell) for cell in row] for row in self._table()]
        columns = "".join(f"<th>{cell}</th>" for cell in head)
        rows = "".join(
            f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
            for row in body
        )
        sentences = "".join(f"<li>{html.escape(s)}</li>" for s in [*self.warnings, *self.notes])
        return (
            f"<p>{html.escape(self._heading())}</p><table><thead><tr>{columns}</tr></thead>"
            f"<tbody>{rows}</tbody></table><p>{html.escape(_LEGEND)}</p><ul>{sentences}</ul>"
        )


def diagnose(
    optimizer: keras.optimizers.Optimizer | keras.Model, since: Report | None = None
) -> Report:
    """The statistics of an optimizer now, from its slots alone.

    Args:
        optimizer: `keras_yogi.Adam`, `keras_yogi.Yogi` or any other Keras optimizer that is built,
            also in a keras.optimizers.LossScaleOptimizer or MultiOptimizer; or a compiled model,
            for its optimizer. Of optimizers other than ours and Keras's Adam and AdamW there are
            norms alone.
        since: an earlier report on the same optimizer, to warn of effective learning rates that
            have grown since then. Defaults to None.

    Returns:
        A `Report`: `print` it, read `report.model["update_norm"]`,
        `report.variables["dense/kernel"]` and `report.warnings`, or convert it with `to_dict()`
        or `to_dataframe()`. docs/tensorboard.md defines every figure and every warning. Medians
        and percentiles of a model of more than 2²⁰ weights are computed from a sample, of at least
        16,384 weights of each variable; everything else from all weights.

    Raises:
        ValueError: `optimizer` is neither a Keras optimizer nor a compiled model, or is not built;
            `since` is not a report.

    Example:
        >>> import keras, keras_yogi, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="out")])
        >>> model.compile(optimizer=keras_yogi.Adam(0.01), loss="mse")
        >>> _ = model.fit(np.ones((64, 3)), np.ones((64, 1)), verbose=0)
        >>> report = keras_yogi.diagnose(model)
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
    found = getattr(optimizer, "optimizer", None) if isinstance(optimizer, keras.Model) else optimizer
    if not isinstance(found, keras.optimizers.Optimizer):
        raise checks.reject("optimizer", "a Keras optimizer or a compiled model", optimizer)
    if since is not None and not isinstance(since, Report):
        raise checks.reject("since", "a report of `keras_yogi.diagnose` or None", since)
    if not found.built:
        rule = "built: train a step, or call `optimizer.build(variables)`, first"
        raise checks.reject("optimizer", rule, optimizer)
    collector = StatisticsCollector(found)
    return Report(collector, collector.statistics(), since)
