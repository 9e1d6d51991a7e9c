"""t5x's own parser reads the gin files of every preset, and builds what its `train` is called with."""

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import optax
import pytest
from flax.core import unfreeze

from flm_jax import LanguageModel, grow, presets
from flm_jax.grow.lineage import Lineage
from flm_jax.optimizer import adamw
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.history import History
from flm_jax.tasks.reader import Reader
from flm_jax.training import continuation
from flm_jax.training.checkpoints import Checkpoints
from flm_jax.training.metadata import RUN_METADATA, CheckpointMismatchError, Metadata
from flm_jax.training.state import create_state
from flm_jax.training.step import skipping_non_finite
from tests import prepared_data
from tests.t5x.gin_files import PRESETS, ROOT

Build = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data(t5x: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Bindings of texts, a tokenizer and prepared files in sequences of 64 tokens."""
    directory = tmp_path_factory.mktemp("data")
    prepared = prepared_data.make_prepared(directory)
    files = {"EN_FILES": "en", "ZH_FILES": "zh", "INSTRUCT_FILES": "instruct"}
    return [
        *(f'{macro}="{directory / "texts" / name}.jsonl"' for macro, name in files.items()),
        f'VOCABULARY="{directory / "tokenizer.model"}"',
        f'PREPARED_DIR="{prepared}"',
        'TASK_FEATURE_LENGTHS={"targets": 64}',
        'INFER_EVAL_LENGTHS={"inputs": 32, "targets": 32}',
        "TRAIN_STEPS=100",
        "WARMUP_STEPS=10",
    ]


def forget_tasks() -> None:
    """As in a new process, in which a name can stand for something else."""
    import seqio

    from flm_jax.tasks import registration

    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in set(registration._ours) & set(registry.names()):
            registry.remove(name)
    registration._ours.clear()


@pytest.fixture
def build(t5x: Any, data: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Build]:
    """`build(files, *bindings)` is what `python -m t5x.train` would call `train` with, references resolved."""
    from t5x import gin_utils, train

    # The gin files take it from the script that runs.
    monkeypatch.setattr(sys.modules["__main__"], "train", train.train, raising=False)

    def arguments(files: list[str], *bindings: str) -> dict[str, Any]:
        gin.clear_config()
        forget_tasks()
        paths = [str(Path(t5x.__file__).parents[1]), str(ROOT)]
        gin_utils.parse_gin_flags(
            paths,
            [f"gin_configs/{file}.gin" for file in files],
            [*data, f'MODEL_DIR="{tmp_path}"', *bindings],
        )
        return gin.get_bindings(train.train)

    yield arguments
    gin.clear_config()


def pretraining(preset: str) -> list[str]:
    return ["t5x/pretrain", f"models/{preset}", "data/bilingual", "t5x/infer_eval"]


@pytest.mark.parametrize("preset", PRESETS)
def test_pretraining(build: Build, preset: str) -> None:
    from t5x import utils

    found = build(pretraining(preset))
    config = getattr(presets, preset)()
    model = found["model"]
    assert model.config == config
    names = ["train_dataset_cfg", "train_eval_dataset_cfg", "infer_eval_dataset_cfg"]
    assert [found[name].mixture_or_task_name for name in names] == ["prepared", "held_out", "questions"]
    assert found["train_dataset_cfg"].seed == found["random_seed"] == 0
    start = utils.TrainStateInitializer(
        model.optimizer_def,
        model.get_initial_variables,
        {"decoder_input_tokens": (8, 64)},
        found["partitioner"],
    )
    shapes = start.global_train_state_shape
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) == config.num_params
    assert {"train_state_initializer_cls", "checkpoint_cfg"} & set(found) == {"checkpoint_cfg"}


def test_streaming(build: Build) -> None:
    lengths = {"inputs": 32, "targets": 32}
    found = build([*pretraining("flm_tiny")[:3], "t5x/streaming"], f"TASK_FEATURE_LENGTHS={lengths}")
    for name in ("train_dataset_cfg", "train_eval_dataset_cfg"):
        assert found[name].mixture_or_task_name == "streamed"
        assert found[name].task_feature_lengths == lengths


def test_a_cap(build: Build, tmp_path: Path) -> None:
    """Of the batches and of the record; streamed text has none."""
    import seqio

    found = build(pretraining("flm_tiny"), 'MAX_EPOCHS={"zh": 2}')
    (reached,) = seqio.TaskRegistry.get("prepared").source._reader(seed=0).plan.reached
    assert (reached.task, reached.epochs) == ("zh", 2)
    found["summarize_config_fn"](str(tmp_path), None, 0)
    metadata = Metadata.from_json(json.loads((tmp_path / RUN_METADATA).read_text()))
    mixture = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
    assert metadata.data_history == History.begin(mixture, 128, {"zh": 2})
    lengths = 'TASK_FEATURE_LENGTHS={"inputs": 32, "targets": 32}'
    streamed = build([*pretraining("flm_tiny")[:3], "t5x/streaming"], lengths, "MAX_EPOCHS=2")
    with pytest.raises(ValueError, match=r"expected MAX_EPOCHS = None where text is streamed.*found 2"):
        streamed["summarize_config_fn"](str(tmp_path), None, 0)


@pytest.fixture
def checkpoint(data: list[str], tmp_path: Path) -> Path:
    """As t5x leaves one of `flm_tiny`, without arrays."""
    directory = tmp_path / "source" / "checkpoint_30"
    (directory / "state").mkdir(parents=True)
    prepared = json.loads(data[4].partition("=")[2])
    mixture = {"en": 53.5, "zh": 46.5, "instruct": 5.0}
    identity = Reader(prepared, mixture, 64, 0).identity
    write(directory.parent, Metadata(presets.flm_tiny(), 0, 128, mixture, identity))
    return directory


def write(model_dir: Path, metadata: Metadata) -> None:
    (model_dir / RUN_METADATA).write_text(json.dumps(metadata.to_json()))


def initializer(found: dict[str, Any], rows: int = 128) -> Any:
    """Made as `train` makes it."""
    return found["train_state_initializer_cls"](
        optimizer_def=found["model"].optimizer_def,
        init_fn=found["model"].get_initial_variables,
        input_shapes={"decoder_input_tokens": (rows, 64)},
        input_types={"decoder_input_tokens": np.int32},
        partitioner=found["partitioner"],
    )


def test_from_a_checkpoint(build: Build, checkpoint: Path) -> None:
    """The model is the checkpoint's, whatever its file says; another one is refused, and another batch size."""
    import seqio

    files = [*pretraining("flm_101b"), "t5x/from_checkpoint"]
    found = build(files, f'INITIAL_CHECKPOINT="{checkpoint}"')
    assert found["model"].config == presets.flm_tiny()
    assert seqio.TaskRegistry.get("prepared").source._first == 30 * 128

    def refused(*bindings: str) -> str:
        other = initializer(build(files, f'INITIAL_CHECKPOINT="{checkpoint}"', *bindings))
        with pytest.raises(CheckpointMismatchError) as error:
            other.from_scratch(jax.random.PRNGKey(0))
        return str(error.value)

    assert "batch_size (expected 64 from BATCH_SIZE, found 128)" in refused("BATCH_SIZE=64")
    assert "d_model (expected 10240 from" in refused("MODEL_CONFIG=@config.ModelConfig()")
    assert "mixture (expected {'instruct': 1.0}" in refused('MIXTURE_OR_TASK_NAME={"instruct": 1.0}')
    message = refused("RANDOM_SEED=3")
    assert "seed (expected 3 from RANDOM_SEED, found 0)" in message and "FIRST_SEQUENCE=0" in message
    # With new data only the tokenizer must be the same.
    new_data = ("RANDOM_SEED=3", 'MIXTURE_OR_TASK_NAME={"instruct": 2.0}', "FIRST_SEQUENCE=0")
    with pytest.raises(FileNotFoundError, match="_METADATA"):  # this one has no arrays
        initializer(build(files, f'INITIAL_CHECKPOINT="{checkpoint}"', *new_data)).from_scratch(None)
    found = continuation.find(checkpoint).metadata
    write(checkpoint.parent, dataclasses.replace(found, data={**found.data, "tokenizer": "other"}))
    assert "tokenizer of the prepared data" in refused(*new_data)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        build(files, 'INITIAL_CHECKPOINT="/nowhere"')
    with pytest.raises(ValueError, match="local directory"):
        build(files, 'INITIAL_CHECKPOINT="gs://bucket/run"')


TURNS = {"alternating": {"language": [3, {"en": 1.0, "zh": 1.0}], "teacher": [1, {"instruct": 1.0}]}}


@pytest.mark.parametrize("caps", [None, {"zh": 2}])
@pytest.mark.parametrize("before", [TURNS, {"en": 53.5, "zh": 46.5, "instruct": 5.0}])
def test_the_data_goes_on_by_its_history(
    build: Build, data: list[str], checkpoint: Path, tmp_path: Path, before: Any, caps: Any
) -> None:
    """Behind a change of the batch size, and of the mixture, and with a cap: what `flm train` would read."""
    import seqio

    history = History.begin(before, 64).changed(5, 128, TURNS)
    found = continuation.find(checkpoint).metadata
    record = dataclasses.replace(found, mixture=TURNS, history=tuple(history.to_json()))
    write(checkpoint.parent, record)
    files = [*pretraining("flm_tiny"), "t5x/from_checkpoint"]
    bindings = [f'INITIAL_CHECKPOINT="{checkpoint}"', f"MIXTURE_OR_TASK_NAME={TURNS}", f"MAX_EPOCHS={caps}"]
    expected = history.changed(30, 128, TURNS, caps)

    def read(*more: str) -> tuple[Any, Any]:
        arguments = build(files, *bindings, *more)
        return arguments, seqio.TaskRegistry.get("prepared").source

    def assert_goes_on(arguments: Any, source: Any) -> None:
        plan = source._reader(seed=0).plan
        ours = Reader(json.loads(data[4].partition("=")[2]), expected, 64, 0).plan
        for step in range(30, 70):
            first = expected.sequences(step)
            assert [plan.locate(first + row) for row in range(128)] == [
                ours.locate(first + row) for row in range(128)
            ]
        assert plan.reached == ours.reached and bool(plan.reached) == bool(caps)

    arguments, source = read()
    assert source._first == 5 * 64 + 25 * 128
    assert_goes_on(arguments, source)
    begins = initializer(arguments)
    assert begins._metadata.data_history == expected
    with pytest.raises(FileNotFoundError, match="_METADATA"):  # nothing is refused; this one has no arrays
        begins.from_scratch(None)
    arguments["summarize_config_fn"](str(tmp_path), None, 0)
    # Started again behind checkpoints of its own, it reads by the history that it has written.
    (tmp_path / "checkpoint_40" / "state").mkdir(parents=True)
    shutil.move(checkpoint.parent, tmp_path / "moved")
    arguments, source = read()
    assert_goes_on(arguments, source)
    arguments["summarize_config_fn"](str(tmp_path), None, 40)
    with pytest.raises(CheckpointMismatchError, match=r"max_epochs \(expected 7 from MAX_EPOCHS, found "):
        read("MAX_EPOCHS=7")[0]["summarize_config_fn"](str(tmp_path), None, 40)
    # Data that begins anew takes turns from its own first batch on.
    _, source = read("FIRST_SEQUENCE=0")
    anew = source._reader(seed=0).plan
    assert [anew.locate(128 * step)[0] == "instruct" for step in range(8)] == 2 * [False, False, False, True]


def test_the_arrays_of_a_checkpoint(build: Build, checkpoint: Path) -> None:
    """Onto t5x's mesh, bit for bit; those of another optimizer are refused."""
    from flm_jax.t5x.wrapped_optimizer import optimizer_def

    config, mesh = presets.flm_tiny(), MeshShape(data=1).build(jax.devices()[:1])
    optimizer = skipping_non_finite(adamw(config, lambda count: 1e-3))
    ours = create_state(LanguageModel(config), optimizer, mesh, seed=4)
    metadata = continuation.find(checkpoint).metadata
    shutil.rmtree(checkpoint.parent)
    with contextlib.closing(Checkpoints(checkpoint.parent)) as checkpoints:
        checkpoints.save(ours._replace(step=jax.numpy.int32(30)), metadata)
    files = [*pretraining("flm_tiny"), "t5x/from_checkpoint"]
    found = build(
        files,
        f'INITIAL_CHECKPOINT="{checkpoint}"',
        "partitioning.PjitPartitioner.model_parallel_submesh=(1, 2)",
    )
    state = initializer(found).from_scratch(jax.random.PRNGKey(0))
    assert int(state.step) == 30
    jax.tree.map(np.testing.assert_array_equal, unfreeze(state.params), ours.params)
    assert len(state.params["token_embedding"]["embedding"].sharding.device_set) == len(jax.devices())
    found["model"].optimizer_def = optimizer_def(optax.sgd(1e-3, momentum=0.9))
    with pytest.raises(
        CheckpointMismatchError, match=r"optimizer: state/param_states/.* differ; bind wrapped"
    ):
        initializer(found).from_scratch(jax.random.PRNGKey(0))


def test_once_begun_a_run_asks_itself(build: Build, checkpoint: Path, tmp_path: Path) -> None:
    """Its own checkpoints say what model it is; the one that it began with may be gone."""
    files = [*pretraining("flm_101b"), "t5x/from_checkpoint"]
    shutil.copytree(checkpoint.parent, tmp_path, dirs_exist_ok=True)
    found = build(files, 'INITIAL_CHECKPOINT="/nowhere"')
    assert found["model"].config == presets.flm_tiny()
    initializer(found)


def test_a_mask_that_opens_is_refused(build: Build, checkpoint: Path) -> None:

    plan = grow.plan(presets.flm_tiny(), dataclasses.replace(presets.flm_tiny(), d_ff=2048), "msg")
    lineage = Lineage().grown(plan, step=20, updates=20, sequences=2560, ramp_steps=11, multipliers="carry")
    write(
        checkpoint.parent,
        Metadata(plan.target, 0, 128, {}, {"tokenizer": ""}, growth_record=lineage.to_json()),
    )
    with pytest.raises(CheckpointMismatchError, match="a mask opens until step 31"):
        build([*pretraining("flm_tiny"), "t5x/from_checkpoint"], f'INITIAL_CHECKPOINT="{checkpoint}"')
    with pytest.raises(CheckpointMismatchError, match="a mask opens until step 31"):
        continuation.model_config(str(checkpoint))  # t5x.eval and t5x.infer


def test_the_record_of_a_run(build: Build, tmp_path: Path) -> None:
    """Written once; a run with other settings in the same directory is refused."""
    build(pretraining("flm_tiny"))["summarize_config_fn"](str(tmp_path), None, 0)
    first = (tmp_path / RUN_METADATA).read_text()
    metadata = Metadata.from_json(json.loads(first))
    assert (
        metadata.config == presets.flm_tiny() and metadata.batch_size == 128 and metadata.data["length"] == 64
    )
    build(pretraining("flm_tiny"), "LEARNING_RATE=1e-3")["summarize_config_fn"](str(tmp_path), None, 10)
    assert (tmp_path / RUN_METADATA).read_text() == first
    other = build(pretraining("flm_tiny"), "BATCH_SIZE=64")["summarize_config_fn"]
    with pytest.raises(
        CheckpointMismatchError, match=r"batch_size \(expected 64 from BATCH_SIZE, found 128\)"
    ):
        other(str(tmp_path), None, 10)
    with pytest.raises(ValueError, match="expected a number for RANDOM_SEED"):
        build(pretraining("flm_tiny"), "RANDOM_SEED=None")["summarize_config_fn"](str(tmp_path), None, 10)


def test_another_tokenizer_is_refused(build: Build, data: list[str], tmp_path: Path) -> None:
    """Than that of the prepared data, for questions too."""
    files = prepared_data.write_texts(tmp_path / "texts", documents=200)
    other = prepared_data.make_tokenizer(tmp_path, files)
    found = build(pretraining("flm_tiny"), f'VOCABULARY="{other.path}"')
    with pytest.raises(ValueError, match=r"expected the tokenizer that .* was prepared with.*VOCABULARY"):
        found["summarize_config_fn"](str(tmp_path), None, 0)


def test_a_misspelt_macro_is_told(build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(pretraining("flm_tiny"), "LEARNING_RAET=1")["summarize_config_fn"](str(tmp_path), None, 0)
    (line,) = [record.message for record in caplog.records if "nothing uses it" in record.message]
    assert line == "the gin macro LEARNING_RAET is set, but nothing uses it; did you mean LEARNING_RATE?"
