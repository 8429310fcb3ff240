"""How steps are carried out: groups of variables and their slots, and what updates them.

An engine is given a rule, the step's scalars and gradients. It knows no optimizer. TensorFlow and
PyTorch are imported on those backends alone.
"""

import keras

from keras_yogi.engines.base import Engine, Group, Limits

__all__ = [
    "Engine",
    "Group",
    "Limits",
    "check_conditional_updates",
    "check_strategy",
    "colocated_with",
    "fused_engine",
    "packed_groups",
    "unfused_engine",
    "unsupported_reason",
]

if keras.config.backend() == "tensorflow":
    from keras_yogi.engines.tensorflow import (
        check_conditional_updates,
        check_strategy,
        colocated_with,
        fused_engine,
        packed_groups,
        unfused_engine,
        unsupported_reason,
    )
elif keras.config.backend() == "torch":
    from keras_yogi.engines.torch import (
        check_conditional_updates,
        check_strategy,
        colocated_with,
        fused_engine,
        packed_groups,
        unfused_engine,
        unsupported_reason,
    )
else:
    from keras_yogi.engines.plain import (
        check_conditional_updates,
        check_strategy,
        colocated_with,
        fused_engine,
        packed_groups,
        unfused_engine,
        unsupported_reason,
    )
