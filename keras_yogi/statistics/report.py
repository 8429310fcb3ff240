"""keras_yogi.diagnose: an optimizer's statistics as a table in Python."""

import copy
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
_LEGEND = """
‖·‖: Euclidean norm; Δw: what the last step has added, weight decay included; lr: effective learning
rate η / (√v̂ + ε). lr and the columns to its right: only of weights that gradients have reached."""


class Report:
    """An optimizer's statistics at one moment. Prints as a table, also in a notebook.

    Attributes:
        step: steps that the optimizer had made.
        model: the figures of all weights together, by name.
        variables: for each variable's path its figures, by name.
        warnings: what is wrong, one sentence each; empty if nothing is.
        notes: what is left out of the figures, one sentence each.
    """

    def __init__(
        self, collector: StatisticsCollector, found: Statistics, since: "Report | None" = None
    ) -> None:
        self._high_rates = advice.high_rates(collector, found)
        earlier = {} if since is None else since._high_rates
        self.step, self.model, self.variables = found.step, found.model, found.variables
        self.warnings = advice.warnings(collector, found, earlier)
        self.notes = collector.notes

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain Python types: what `json.dumps` takes, but for NaN and infinity."""
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return copy.deepcopy(public)

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per variable and a column per figure.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("`to_dataframe` needs pandas: pip install pandas") from error
        return pd.DataFrame.from_dict(self.variables, orient="index").rename_axis("variable")

    def __str__(self) -> str:
        names = [*self.variables, "(whole model)"]
        rows = [("", list(_COLUMNS))]
        for name, figures in zip(names, [*self.variables.values(), self.model], strict=True):
            found = [figures.get(figure) for figure in _COLUMNS.values()]
            rows.append((name, ["" if value is None else f"{value:.3g}" for value in found]))
        table = [
            f"{name:<{max(map(len, names))}}" + "".join(f"{cell:>12}" for cell in cells)
            for name, cells in rows
        ]
        rates = [f"{n} {v:.3g}" for n, v in self.model.items() if n.startswith("learning_rate")]
        heading = f"After {self.step:,} steps; {', '.join(rates)}\n"
        faults = [f"! {text}" for text in self.warnings]
        return "\n".join([heading, *table, _LEGEND, *faults, *(f"- {n}" for n in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def diagnose(
    optimizer: keras.optimizers.Optimizer | keras.Model, since: Report | None = None
) -> Report:
    """The statistics of an optimizer now, from its slots alone.

    Args:
        optimizer: `keras_yogi.Adam`, `keras_yogi.Yogi` or any other Keras optimizer that is built,
            also in a keras.optimizers.LossScaleOptimizer or MultiOptimizer; or a compiled model.
            Of optimizers other than ours and Keras's Adam and AdamW there are norms alone.
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
        Kingma & Ba, "Adam", ICLR 2015, section 2.1: the effective step, the signal-to-noise ratio.
        Zaheer, Reddi, Sachan, Kale & Kumar, "Adaptive Methods for Nonconvex Optimization",
        NeurIPS 2018, section 3: effective learning rates that grow too fast.
    """
    checks.not_of_keras_2("optimizer", optimizer)
    is_model = isinstance(optimizer, keras.Model)
    found = getattr(optimizer, "optimizer", None) if is_model else optimizer
    if not isinstance(found, keras.optimizers.Optimizer):
        raise checks.reject("optimizer", "a Keras optimizer or a compiled model", optimizer)
    if since is not None and not isinstance(since, Report):
        raise checks.reject("since", "a report of `keras_yogi.diagnose` or None", since)
    if not found.built:
        rule = "built: train a step, or call `optimizer.build(variables)`, first"
        raise checks.reject("optimizer", rule, optimizer)
    collector = StatisticsCollector(found)
    return Report(collector, collector.statistics(), since)
