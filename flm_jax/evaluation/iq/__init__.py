"""The IQ suite of FLM-101B's paper: tasks that knowledge does not help with.

Of a `flm_jax.evaluation.text_model.TextModel`:

    >>> results = run(model, suite(languages=("en", "zh"), data_dir="data/eval"))
    >>> print(results.table())
"""

from flm_jax.evaluation.iq.classification import Classification
from flm_jax.evaluation.iq.generated import generate
from flm_jax.evaluation.iq.guesser import Guesser
from flm_jax.evaluation.iq.items import Item, ItemSet, Space, write_instructions, write_items
from flm_jax.evaluation.iq.measure import measure, run
from flm_jax.evaluation.iq.oracle import Oracle
from flm_jax.evaluation.iq.results import GroupMean, Rate, Results, TaskResult
from flm_jax.evaluation.iq.sets import suite

__all__ = [
    "Classification",
    "GroupMean",
    "Guesser",
    "Item",
    "ItemSet",
    "Oracle",
    "Rate",
    "Results",
    "Space",
    "TaskResult",
    "generate",
    "measure",
    "run",
    "suite",
    "write_instructions",
    "write_items",
]
