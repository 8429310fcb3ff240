"""Weights in bfloat16, with and without a residual that keeps what bfloat16 cannot hold.

In bfloat16, 1 − 0.001 is 1. If all steps of a weight are shorter than half a unit in its last
place, it never moves. `keras_yogi.Adam` keeps the rest of the weight in a residual of 16 bits, and
so trains the same weight as in float32. The contenders:

- float32: `keras_yogi.Adam` on a model in float32;
- residual: `keras_yogi.Adam` on the same model in bfloat16;
- no residual: `keras_yogi.Adam(keep_residual=False)`, which computes in float32 and rounds;
- Keras: `keras.optimizers.Adam` on the model in bfloat16, which computes in bfloat16, too. There
  its β₂ = 0.999 is 1, the bias correction 1 − β₂ᵗ is 0, and so is every step;
- Keras, β₂ = 0.99: the same with a β₂ that bfloat16 can hold (as 0.988).

They train a small transformer from new weights on the Python standard library's source, byte by
byte; and, if KerasHub is installed, a tiny Gemma that has learnt that source in float32 is
fine-tuned on the text of Python's `help()`: all weights in bfloat16, or LoRA adapters alone.
Within a seed all start from the same weights, rounded to bfloat16, and see the same batches.

    python examples/half_precision.py            about 8 minutes on 2 cores
    python examples/half_precision.py --quick    seconds: a few steps

The losses are cross-entropies in nats a byte, of text that is not trained on. A weight "stands
still" if the model sees the same value at the end as at the start. Bytes a weight are those of the
trained weights and of the optimizer's variables for them.

What to expect: with the residual bfloat16 trains like float32 at every learning rate. Without it,
the smaller the rate, the fewer weights move: at 1e-2 it does as well, at 1e-4 it is far behind.
LoRA is not affected: Keras 3.15 makes the adapters in float32, whatever the model's dtype is.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

import _jobs as jobs
import _shared as shared
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from tqdm import tqdm

import keras_yogi

TABLE_ROWS = 2_048
PRETRAINING_SEED, PRETRAINING_RATE = 1000, 3e-3
VALIDATED_SHARE = 0.1  # of the text that is fine-tuned on: its end
LORA_RANK = 4


class Size(NamedTuple):
    steps: int
    every: int  # steps from one validation to the next
    pretraining_steps: int
    eager: bool  # no graphs, which take longer to trace than a few steps take


FULL = Size(steps=160, every=32, pretraining_steps=300, eager=False)
QUICK = Size(steps=2, every=2, pretraining_steps=1, eager=True)


class Contender(NamedTuple):
    """What is compared: an optimizer, its arguments, and the model's dtype."""

    optimizer: type
    arguments: dict[str, Any]
    dtype: str
    line: dict[str, Any]


# Broad lines below thin ones: all are visible where they coincide.
CONTENDERS = {  # Okabe and Ito's colours
    "float32": Contender(
        keras_yogi.Adam,
        {},
        "float32",
        {"color": "#56B4E9", "linewidth": 8.0, "zorder": 2.1},
    ),
    "residual": Contender(
        keras_yogi.Adam,
        {},
        "bfloat16",
        {"color": "black", "linewidth": 1.5, "linestyle": (0, (4, 4)), "zorder": 2.5},
    ),
    "no residual": Contender(
        keras_yogi.Adam,
        {"keep_residual": False},
        "bfloat16",
        {"color": "#E69F00", "linewidth": 5.0, "zorder": 2.2},
    ),
    "Keras": Contender(
        keras.optimizers.Adam,
        {},
        "bfloat16",
        {"color": "#BBBBBB", "linewidth": 2.5, "zorder": 2.3},
    ),
    "Keras, β₂ = 0.99": Contender(
        keras.optimizers.Adam,
        {"beta_2": 0.99},
        "bfloat16",
        {"color": "#D55E00", "linewidth": 1.5, "linestyle": (4, (4, 4)), "zorder": 2.4},
    ),
}
REFERENCE = "float32"

Weights = list[np.ndarray]
Batches = tuple[np.ndarray, np.ndarray]


class Task(NamedTuple):
    """A model, and the text that it is trained on.

    Attributes:
        model: makes it, for a dtype and a seed.
        texts: "training" and "validation".
        learning_rates: at which the contenders are compared.
    """

    model: Callable[[str, int], keras.Model]
    texts: dict[str, jobs.Text]
    learning_rates: tuple[float, ...]


# Models


def new_transformer(dtype: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return jobs.language_model(TABLE_ROWS, dtype)


def tiny_gemma(dtype: str) -> keras.Model:
    """A KerasHub model from a config: nothing is downloaded."""
    import keras_hub

    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=jobs.BYTES,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=64,
        intermediate_dim=256,
        head_dim=16,
        dtype=dtype,
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)


def pretrained_gemma(size: Size) -> Weights:
    """What the model has learnt of the standard library's source."""
    keras.utils.set_random_seed(PRETRAINING_SEED)
    model = tiny_gemma("float32")
    compile_model(model, keras_yogi.Adam(PRETRAINING_RATE), size)
    text = jobs.text_of_bytes(jobs.source_bytes("training"))
    batches = jobs.batches(text, size.pretraining_steps, PRETRAINING_SEED)
    model.fit(dataset(model, batches), shuffle=False, verbose=0)
    return model.get_weights()


def fine_tuned(weights: Weights, dtype: str, lora: bool) -> keras.Model:
    model = tiny_gemma(dtype)
    model.set_weights(weights)
    if lora:
        model.backbone.enable_lora(LORA_RANK)
    return model


def tasks(size: Size) -> dict[str, Task]:
    """What is trained; without KerasHub there is no fine-tuning."""
    texts = {part: jobs.source(part, TABLE_ROWS) for part in jobs.MODULES}
    found = {"from new weights": Task(new_transformer, texts, (1e-2, 1e-3, 1e-4))}
    if not is_fine_tuned():
        return found
    weights = pretrained_gemma(size)
    texts = manual()

    def all_weights(dtype: str, seed: int) -> keras.Model:
        return fine_tuned(weights, dtype, lora=False)

    def adapters(dtype: str, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return fine_tuned(weights, dtype, lora=True)

    found["fine-tuning"] = Task(all_weights, texts, (1e-3, 1e-4))
    found["LoRA"] = Task(adapters, texts, (1e-3,))
    return found


def is_fine_tuned() -> bool:
    return importlib.util.find_spec("keras_hub") is not None


# Data


def manual() -> dict[str, jobs.Text]:
    """The text of Python's `help()`, in English."""
    from pydoc_data import topics

    content = "\n".join(topics.topics.values()).encode()
    border = round((1 - VALIDATED_SHARE) * len(content))
    parts = {"training": content[:border], "validation": content[border:]}
    return {part: jobs.text_of_bytes(of) for part, of in parts.items()}


def dataset(model: keras.Model, batches: Iterator[Batches]) -> tf.data.Dataset:
    """Batches as the model takes them."""
    x, y = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    if isinstance(model.input, dict):  # KerasHub's
        x = {"token_ids": x.astype("int32"), "padding_mask": np.ones_like(x, "int32")}
    return tf.data.Dataset.from_tensor_slices((x, y))


# Training


class Run(NamedTuple):
    losses: list[float]  # in validation, the one before the first step included
    standing_still: float  # share of the weights


def compile_model(model: keras.Model, optimizer: keras.optimizers.Optimizer, size: Size) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, run_eagerly=size.eager, jit_compile=False)


class Trainer:
    """A contender's model, compiled once; every run starts it afresh."""

    def __init__(self, task: Task, contender: Contender, size: Size) -> None:
        self.task, self.size = task, size
        self.model = task.model(contender.dtype, 0)
        compile_model(self.model, contender.optimizer(**contender.arguments), size)
        self.model.optimizer.build(self.model.trainable_variables)
        self.first_state = [v.numpy() for v in self.model.optimizer.variables]
        self.validation = dataset(
            self.model, iter([jobs.validation_windows(task.texts["validation"])])
        )

    def run(self, first_weights: Weights, learning_rate: float, seed: int) -> Run:
        """The seed decides the batches."""
        model, size = self.model, self.size
        model.set_weights(first_weights)
        model.optimizer.set_weights(self.first_state)
        model.optimizer.learning_rate = learning_rate
        first = [v.numpy() for v in model.trainable_variables]
        batches = dataset(model, jobs.batches(self.task.texts["training"], size.steps, seed))
        losses = [model.evaluate(self.validation, verbose=0, return_dict=True)["loss"]]
        history = model.fit(
            batches,
            epochs=size.steps // size.every,
            steps_per_epoch=size.every,
            validation_data=self.validation,
            shuffle=False,
            verbose=0,
        )
        still = [v.numpy() == of for v, of in zip(model.trainable_variables, first, strict=True)]
        share = float(np.mean(np.concatenate([of.ravel() for of in still])))
        return Run(losses + history.history["val_loss"], share)

    def bytes_per_weight(self) -> dict[str, float]:
        """Of the trained weights, and of the optimizer's variables for them."""
        weights = self.model.trainable_variables
        _, _, *slots = self.model.optimizer.variables  # the step and the learning rate
        count = sum(v.numpy().size for v in weights)
        parts = {"weights": weights, "optimizer": slots}
        return {part: sum(v.numpy().nbytes for v in of) / count for part, of in parts.items()}


def train_all(found: dict[str, Task], size: Size, seeds: int, logdir: Any) -> dict[str, Any]:
    """Per task, learning rate and contender: a run a seed."""
    results: dict[str, Any] = {}
    runs = sum(len(task.learning_rates) for task in found.values()) * len(CONTENDERS) * seeds
    steps = list(range(0, size.steps + 1, size.every))
    # disable=None: no bar where standard error is not a terminal.
    with tqdm(total=runs, unit="run", disable=None) as bar:
        for label, task in found.items():
            # Rounded to bfloat16, which set_weights does for the others.
            starts = [task.model("bfloat16", seed).get_weights() for seed in range(seeds)]
            of_task: dict[str, Any] = {f"{rate:g}": {} for rate in task.learning_rates}
            for name, contender in CONTENDERS.items():
                trainer = Trainer(task, contender, size)
                for rate in task.learning_rates:
                    of: list[Run] = []
                    for seed, weights in enumerate(starts):
                        of.append(trainer.run(weights, rate, seed))
                        bar.update()
                    losses = [run.losses for run in of]
                    of_task[f"{rate:g}"][name] = {
                        "losses": losses,
                        "standing_still": [run.standing_still for run in of],
                        "bytes_per_weight": trainer.bytes_per_weight(),
                    }
                    means = {"validation loss": np.mean(losses, axis=0)}
                    shared.write_curves(logdir, f"{label}, {rate:g}, {name}", steps, means)
            results[label] = of_task
    return {"steps": steps, "tasks": results}


# Results


def panels_of(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The task, the learning rate and the contenders' results of each."""
    for label, of_task in results["tasks"].items():
        for rate, of_rate in of_task.items():
            yield label, rate, of_rate


def report_on(results: dict[str, Any], report: shared.Report) -> None:
    if report.options.quick:
        report.paragraph("A quick run of a few steps: its figures mean nothing.")
    if not is_fine_tuned():
        report.paragraph(
            "No fine-tuning: KerasHub is not installed. `pip install -e '.[libraries]'` adds it."
        )
    for label, rate, of_rate in panels_of(results):
        first = [run[0] for run in of_rate[REFERENCE]["losses"]]
        final = {name: [run[-1] for run in of["losses"]] for name, of in of_rate.items()}
        report.table(
            f"{label[0].upper()}{label[1:]}, η = {rate}: after {results['steps'][-1]} steps, mean "
            f"of {report.options.seeds} seeds (95 % interval)",
            [
                "optimizer",
                "validation loss",
                f"less that of {REFERENCE}, seed by seed",
                "weights that stand still",
                "bytes a weight",
            ],
            [
                ["before the first step", shared.with_interval(first), "", "", ""],
                *[
                    [
                        name,
                        shared.with_interval(final[name]),
                        "" if name == REFERENCE else difference(final[name], final[REFERENCE]),
                        f"{np.mean(of['standing_still']):.1%}",
                        f"{sum(of['bytes_per_weight'].values()):.1f}",
                    ]
                    for name, of in of_rate.items()
                ],
            ],
        )


def difference(losses: Sequence[float], reference: Sequence[float]) -> str:
    return shared.with_interval(np.subtract(losses, reference))


def draw(results: dict[str, Any]) -> Figure:
    panels = list(panels_of(results))
    columns = min(3, len(panels))
    picture, axes_of = shared.blank_figure(
        "Validation loss in nats a byte, mean over the seeds", columns, -(-len(panels) // columns)
    )
    for axes, (label, rate, of_rate) in zip(axes_of, panels, strict=True):
        axes.set_title(f"{label}, η = {rate}", fontsize=9.5)
        axes.set_xlabel("steps")
        for name, of in of_rate.items():
            mean, _ = shared.mean_and_interval(of["losses"])
            axes.plot(results["steps"], mean, label=name, **CONTENDERS[name].line)
    axes_of[0].legend(frameon=False, handlelength=4)
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    parser = shared.example_parser(__doc__, __file__, seeds=3, quick_seeds=1)
    options = shared.parse_options(parser, argv)
    size = QUICK if options.quick else FULL
    report = shared.Report("Weights in bfloat16", options)
    try:
        found = tasks(size)
    except jobs.DataError as error:
        parser.error(str(error))
    if options.quick:
        found = {label: task._replace(learning_rates=(1e-3,)) for label, task in found.items()}
    results = train_all(found, size, options.seeds, options.logdir)
    report_on(results, report)
    report.write(results, draw(results))


if __name__ == "__main__":
    main()
