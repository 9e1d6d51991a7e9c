"""What gin names under t5x: registers tasks with seqio and returns the name that t5x looks them up by.

    train/utils.DatasetConfig.mixture_or_task_name = @seqio_tasks.prepared()

A name stands for one thing in a process. For a second one of a kind, under a gin scope, bind the function's `name`.
Importing this imports TensorFlow.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio

from flm_jax.tasks.corpora import Questions, Task
from flm_jax.tasks.examples import pairs
from flm_jax.tasks.history import Epochs, History, read_epochs
from flm_jax.tasks.lengths import check_lengths, num_pieces
from flm_jax.tasks.mixture import Mixture
from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.registration import add_mixture, add_task
from flm_jax.tasks.seqio_sources import PACKED_FEATURES, PreparedSource
from flm_jax.tasks.sources import TRAIN, Problems
from flm_jax.tasks.vocabulary import Vocabulary

# A task's mean length is measured on its first documents.
_MEASURED_DOCUMENTS = 1_000


def vocabulary(path: str | Path) -> seqio.Vocabulary:
    """The tokenizer as seqio's, which `t5x.infer` compares with that of the task."""
    return Vocabulary(path).as_seqio()


def prepared(
    prepared_dir: str | Path,
    mixture: Any,
    task_feature_lengths: int | Mapping[str, int],
    first_sequence: int = 0,
    name: str = "prepared",
    batch_size: int | None = None,
    max_epochs: Epochs = None,
) -> str:
    """Registers the prepared files as one task, whose features are packed.

    Read shuffled with seed s, it is what `flm train` reads with `RANDOM_SEED` s: the mixture, by exact shares of
    tokens, is inside of it.

    Args:
        prepared_dir: What `flm data prepare` wrote.
        mixture: As for `flm train`: a task's name, task to relative share of tokens, a schedule or `Alternating`; or
            the `History` of a run that goes on.
        task_feature_lengths: That the files were prepared with.
        first_sequence: Sequences that a run has read before.
        name: That t5x finds it by.
        batch_size: Sequences a step, where the mixture alternates.
        max_epochs: That a task may be read for, a number or task to number.

    Raises:
        FileNotFoundError: nothing is prepared there, or a prepared file is missing.
        ValueError: as `Reader`, or the name stands for something else.
    """
    source = PreparedSource(
        prepared_dir, mixture, task_feature_lengths, first_sequence, batch_size, max_epochs
    )
    meant = mixture if isinstance(mixture, History) else Mixture.of(mixture)
    made_of = (str(prepared_dir), meant, source.length, first_sequence, batch_size, read_epochs(max_epochs))
    _add_packed("prepared.name", {name: source}, made_of)
    return name


def held_out(
    prepared_dir: str | Path,
    mixture: Any,
    task_feature_lengths: int | Mapping[str, int],
    name: str = "held_out",
) -> str:
    """Registers each prepared task as `<task>_<name>`, and their mixture: to evaluate one by one.

    Args, Raises: as `prepared`.
    """
    tasks = (mixture if isinstance(mixture, History) else Mixture.of(mixture)).tasks
    sources = {f"{task}_{name}": PreparedSource(prepared_dir, task, task_feature_lengths) for task in tasks}
    made_of = (str(prepared_dir), tasks, sequence_length(task_feature_lengths))
    _add_packed("held_out.name", sources, made_of)
    add_mixture(name, "held_out.name", made_of, dict.fromkeys(sources, 1.0))
    return name


def streamed(
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    mixture: Any,
    task_feature_lengths: Mapping[str, int],
    name: str = "streamed",
) -> str:
    """Registers tasks as they are defined, tokenized while training, and their mixture.

    Seqio mixes by examples. A task's rate is its share of tokens over the mean length of its examples, which is
    measured on its first 1,000 documents: shares come out about as asked for, where `prepared` has them exactly.

    Args:
        tasks: Defined in gin; those that the mixture names are registered, under their own names.
        vocabulary: Tokenizer of them all.
        mixture: A task's name, or task to relative share of tokens; seqio knows no other form.
        task_feature_lengths: Tokens for `inputs` and `targets` of an example; a packed sequence has both together.
        name: That t5x finds the mixture by.

    Raises:
        ValueError: the mixture names a task that is not there, or one with inputs for which there is no length, or it
            changes with the step; or the name stands for something else.
    """
    shares = _constant_shares(mixture)
    known = _named(tasks, shares)
    for task in shares:
        check_lengths(task_feature_lengths, task, known[task].has_inputs)
        known[task].seqio_task(vocabulary)
    rates = {
        task: share / mean_length(known[task], vocabulary, task_feature_lengths)
        for task, share in shares.items()
    }
    add_mixture(name, "streamed.name", (known, vocabulary.sha256, shares, task_feature_lengths), rates)
    return name


def questions(
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    mixture: Any,
    task_feature_lengths: Mapping[str, int],
    name: str = "questions",
) -> str:
    """Registers the tasks of the mixture that have questions to be answered, as `<task>_questions`, and their mixture.

    Args: as `streamed`, `task_feature_lengths` for a question and its answer; a longer one is an error when it is read.

    Raises:
        ValueError: there are none, or the mixture names a task that is not there, or there is no length for them.
    """
    names = Mixture.of(mixture).tasks
    known = _named(tasks, names).values()
    asked = [task for task in known if task.name in names and isinstance(task, Questions)]
    if not asked:
        raise ValueError(
            f"expected instruction tasks in the mixture for inference, found {names}: change the gin binding "
            "`MIXTURE_OR_TASK_NAME`"
        )
    for task in asked:
        check_lengths(task_feature_lengths, task.name, needs_inputs=True)
    rates = {task.questions(vocabulary).name: 1.0 for task in asked}
    add_mixture(name, "questions.name", (asked, vocabulary.sha256), rates)
    return name


def mean_length(task: Task, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> float:
    """Tokens per example, eos included, over the first documents of a task.

    Raises:
        ValueError: it has no documents.
    """
    tokens = examples = 0
    documents = itertools.islice(task.read(TRAIN, Problems()), _MEASURED_DOCUMENTS)
    for example in (example for document in documents for example in document.examples):
        for inputs, targets in pairs(example, vocabulary):
            pieces = num_pieces(len(inputs), len(targets), lengths)
            if not (task.is_whole and pieces > 1):
                tokens += len(inputs) + len(targets)
                examples += pieces
    if not examples:
        raise ValueError(
            f"expected documents in the split {TRAIN!r} of task {task.name!r}, found none: change the gin binding "
            f"`{type(task.source).__name__}.files`"
        )
    return tokens / examples


def _named(tasks: Sequence[Task], names: Collection[str]) -> dict[str, Task]:
    known = {task.name: task for task in tasks}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"expected a mixture of {sorted(known)}, found {unknown}: change the gin binding "
            "`MIXTURE_OR_TASK_NAME` or `TASKS`"
        )
    return known


def _constant_shares(mixture: Any) -> dict[str, float]:
    changes = Mixture.of(mixture).changes
    if len(changes) > 1 or len(changes[0][1]) > 1:
        raise ValueError(
            f"expected task to share of tokens, the only mixture that seqio can stream, found {mixture!r}: change the "
            "gin binding `MIXTURE_OR_TASK_NAME`, or prepare the files and read them with `seqio_tasks.prepared`"
        )
    return dict(changes[0][1][0].shares)


def _add_packed(binding: str, sources: Mapping[str, PreparedSource], made_of: Any) -> None:
    # One for all: seqio takes two tokenizers for different if their files lie in different places.
    model = next(iter(sources.values())).vocabulary
    tokens = seqio.Feature(model.as_seqio(), add_eos=False)
    numbers = seqio.Feature(seqio.PassThroughVocabulary(model.size), add_eos=False)
    features = {name: tokens if name.endswith("_tokens") else numbers for name in PACKED_FEATURES}
    for name, source in sources.items():
        add_task(
            name,
            binding,
            made_of,
            source=source,
            output_features=features,
            preprocessors=[],
            shuffle_buffer_size=None,  # the source shuffles
            metric_fns=[],
        )
