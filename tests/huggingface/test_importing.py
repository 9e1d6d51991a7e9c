import dataclasses
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from flm_jax import Decoder, ModelConfig, cli, optimizer, parameters
from flm_jax.huggingface import llama, tensor_files
from flm_jax.huggingface.exporting import Export
from flm_jax.huggingface.fresh_state import fresh_state
from flm_jax.huggingface.importing import Import
from flm_jax.huggingface.token_ids import SpecialIds, row_order, special_ids
from flm_jax.training.checkpoints import load_params
from flm_jax.training.metadata import Metadata
from flm_jax.training.step import skipping_non_finite
from flm_jax.training.streaming import LazyArray
from tests import reference
from tests.huggingface import checkpoints, numpy_llama
from tests.huggingface.checkpoints import random_params
from tests.huggingface.folders import LLAMA_FIELDS, PUBLISHED, folder, llama_weights, published_weights
from tests.models import LLAMA, random_tokens, small_config
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")


def taken(source: Path, out: Path, **settings: Any) -> tuple[Metadata, Any, int]:
    Import(source, **settings).write(out)
    return load_params(out)


def ours(config: ModelConfig, params: Any, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(Decoder(dataclasses.replace(config, dtype="float32")).apply({"params": params}, tokens))


def assert_close(found: Any, expected: Any) -> None:
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_flm_101bs_layout(tmp_path: Path) -> None:
    """The logits are those of the paper's formulas on the tensors, cut into heads by hand."""
    weights = published_weights()
    metadata, params, step = taken(folder(tmp_path / "in", PUBLISHED, weights), tmp_path / "out")
    config = metadata.config
    assert (step, config.parametrization, config.logit_scale) == (0, "mup", 2.0 / 0.125)
    assert (config.head_dim, config.xpos_scale_base, config.dtype) == (8, 512.0, "bfloat16")

    def of(layer: int, name: str) -> np.ndarray:
        return weights[f"transformer.h.{layer}.{name}"].astype(np.float64)

    def stack(name: str, shape: tuple[int, ...], part: int | None = None) -> np.ndarray:
        pieces = [of(layer, name) for layer in range(2)]
        if part is not None:
            pieces = [piece[..., 32 * part : 32 * (part + 1)] for piece in pieces]
        return np.stack([piece.reshape(shape) for piece in pieces])

    attention = {
        f"{name}_{kind}": stack(f"attn.c_attn.{theirs}", shape, part)
        for part, name in enumerate(("query", "key", "value"))
        for kind, theirs, shape in (("kernel", "weight", (32, 4, 8)), ("bias", "bias", (4, 8)))
    }
    by_hand = {
        "token_embedding": {"embedding": weights["transformer.wte.weight"].astype(np.float64)},
        "layers": {
            "attention_norm": {"scale": stack("ln_1.weight", (32,)), "bias": stack("ln_1.bias", (32,))},
            "attention": {
                **attention,
                "out_kernel": stack("attn.c_proj.weight", (4, 8, 32)),
                "out_bias": stack("attn.c_proj.bias", (32,)),
            },
            "mlp_norm": {"scale": stack("ln_2.weight", (32,)), "bias": stack("ln_2.bias", (32,))},
            "mlp": {
                "wi_kernel": stack("mlp.c_fc.weight", (32, 128)),
                "wi_bias": stack("mlp.c_fc.bias", (128,)),
                "wo_kernel": stack("mlp.c_proj.weight", (128, 32)),
                "wo_bias": stack("mlp.c_proj.bias", (32,)),
            },
        },
        "final_norm": {
            "scale": weights["transformer.ln_f.weight"].astype(np.float64),
            "bias": weights["transformer.ln_f.bias"].astype(np.float64),
        },
    }
    tokens = random_tokens(config, 1, 9)
    assert_close(ours(config, params, tokens)[0], reference.logits(by_hand, tokens[0], config))
    assert "scale_attn_by_inverse_layer_idx is left out" in Import(tmp_path / "in").notices[0]


def test_what_flm_101bs_files_may_hold_besides(tmp_path: Path) -> None:
    weights = published_weights()
    weights["transformer.h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    Import(folder(tmp_path / "in", PUBLISHED, weights))
    other = {**weights, "lm_head.weight": weights["lm_head.weight"] + 1}
    with pytest.raises(
        ValueError, match=r"found a tensor lm_head\.weight \[70, 32\] in .*model\.safetensors"
    ):
        Import(folder(tmp_path / "other", PUBLISHED, other))


def test_another_scale_factor_goes_into_the_multiplier(tmp_path: Path) -> None:
    fields = {**PUBLISHED, "mup_scale_factor": 40.0}
    found = Import(folder(tmp_path / "in", fields, published_weights()))
    assert found.metadata.config.logit_scale == pytest.approx(2.0 / 40, rel=1e-15)
    assert "mup_scale_factor is 40.0" in found.notices[0]


def test_a_llama_by_an_independent_one(tmp_path: Path) -> None:
    weights = llama_weights()
    metadata, params, _ = taken(folder(tmp_path / "in", LLAMA_FIELDS, weights), tmp_path / "out")
    tokens = random_tokens(metadata.config, 1, 12)
    assert_close(
        ours(metadata.config, params, tokens)[0], numpy_llama.logits(weights, LLAMA_FIELDS, tokens[0])
    )
    assert metadata.config.parametrization == "standard"
    Export(tmp_path / "out").write(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)


def test_bfloat16_goes_out_as_it_came_in(tmp_path: Path) -> None:
    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in llama_weights().items()}
    metadata, params, _ = taken(
        folder(tmp_path / "in", {**LLAMA_FIELDS, "dtype": "bfloat16"}, weights), tmp_path / "out"
    )
    assert metadata.config.dtype == "bfloat16" and {leaf.dtype for leaf in jax.tree.leaves(params)} == {
        np.dtype(np.float32)
    }
    Export(tmp_path / "out", "bfloat16").write(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in weights.items()
    }


def test_rope_of_transformers_4_and_5_is_one(tmp_path: Path) -> None:
    old = {**LLAMA_FIELDS, "rope_theta": 300.0, "rope_scaling": None}
    del old["rope_parameters"]
    assert llama.from_json(old) == llama.from_json(LLAMA_FIELDS)


def test_nothing_half_written_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Import(folder(tmp_path / "in", LLAMA_FIELDS, llama_weights()), b"{}", np.arange(50))
    made = []

    def fails(size: int) -> None:
        made.append(size)
        if len(made) == 4:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        found.write(tmp_path / "out", fails)
    assert not (tmp_path / "out").exists()
    found.write(tmp_path / "out")
    with pytest.raises(FileExistsError):
        found.write(tmp_path / "out")


def test_a_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Of the stacked arrays each layer is read and written by itself."""
    sizes: list[int] = []
    found = Import(folder(tmp_path / "in", LLAMA_FIELDS, llama_weights()))
    found.write(tmp_path / "out", sizes.append)
    assert max(sizes) == 50 * 24 * 4 and sum(sizes) == found.num_bytes == 4 * found.metadata.config.num_params
    assert len(sizes) == 3 + 2 * 9


def test_the_state_is_that_of_a_run_that_begins(tmp_path: Path) -> None:
    """At step 0, what `optimizer.adamw` begins with, bit for bit."""
    config = small_config(**LLAMA)
    params = random_params(config)
    checkpoints.write(tmp_path / "run", config, params, step=0)
    optimizer_ = skipping_non_finite(optimizer.adamw(config, lambda count: 0.0))
    wanted = jax.tree_util.tree_leaves_with_path(optimizer_.init(params))
    found = {
        name: value for name, value in runs.stored(tmp_path / "run", 0).items() if "param_states" in name
    }
    assert len(found) == len(wanted)
    state = fresh_state(load_params(tmp_path / "run")[0], 0, params)
    for (path, leaf), lazy in zip(wanted, jax.tree.leaves(state.opt_state), strict=True):
        array = lazy if isinstance(lazy, np.ndarray) else whole(lazy)
        np.testing.assert_array_equal(array, leaf, err_msg=jax.tree_util.keystr(path))
        assert array.dtype == leaf.dtype


def whole(lazy: LazyArray) -> np.ndarray:
    pieces = [piece for _, piece in lazy.pieces("moment")]
    return np.stack(pieces) if lazy.stacked else pieces[0]


def test_rows_follow_the_tokenizer(tmp_path: Path) -> None:
    """Probabilities are those of the foreign ids; rows that no token of ours takes stay in the softmax."""
    weights = llama_weights()
    source = folder(tmp_path / "in", LLAMA_FIELDS, weights)
    assert special_ids(source) == SpecialIds(4, 7, None)
    ids = np.array([4, 7, 0, 1, 2, 3, 5, 6, *range(8, 45)], np.int32)
    metadata, params, _ = taken(source, tmp_path / "out", tokenizer=b"{}", source_ids=ids)
    assert metadata.config.vocab_size == 50 and (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"
    tokens = np.array([[0, 9, 20, 3, 44]])
    found = ours(metadata.config, params, tokens)[0]
    theirs = numpy_llama.logits(weights, LLAMA_FIELDS, ids[tokens[0]])
    assert_close(found[:, :45], theirs[:, ids])
    np.testing.assert_allclose(np.logaddexp.reduce(found, -1), np.logaddexp.reduce(theirs, -1), rtol=1e-5)
    metadata.check_tokenizer("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "x")
    with pytest.raises(ValueError, match="expected the tokenizer with SHA-256 44136"):
        metadata.check_tokenizer("00", "x")


def test_row_order() -> None:
    assert row_order(np.array([2, 1, 1]), 5).tolist() == [2, 1, 1, 0, 3]  # as in its docstring
    assert row_order(np.array([1, 1, 0]), 2).tolist() == [1, 1, 0]
    assert sorted(row_order(np.array([3, 2, 0]), 4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"rows of the embedding, 0 to 4.*found ids 0 to 5"):
        row_order(np.array([0, 5]), 5)


def test_an_export_of_ours_takes_no_tokenizer(tmp_path: Path) -> None:
    config = small_config()
    Export(checkpoints.write(tmp_path / "run", config, random_params(config))).write(tmp_path / "out")
    with pytest.raises(ValueError, match="whose ids are ours already"):
        Import(tmp_path / "out", b"{}", np.arange(96))


def test_the_command_line_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in", {**LLAMA_FIELDS, "model_type": "gpt2"}, llama_weights())
    assert cli.main(["import", f"--source={source}", f"--out={tmp_path / 'out'}"]) == cli.EXIT_USAGE
    assert "found 'gpt2' (LlamaForCausalLM)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_parameter_has_a_name_in_flms_format() -> None:
    """And in Llama's, where the model is one: the table's leaves and the mapping's are the same."""
    from flm_jax.huggingface import layout
    from tests.models import ALL_BLOCKS

    for block in ALL_BLOCKS:
        config = small_config(**block)
        parts = [
            (part.path, tensor.layer, int(np.prod(part.shape)))
            for tensor in layout.tensors(config, layout.FLM)
            for part in tensor.parts
        ]
        assert len({part[:2] for part in parts}) == len(parts)
        assert sum(size for *_, size in parts) == config.num_params
    rows = jax.tree.leaves(parameters.table(small_config(**LLAMA)), is_leaf=parameters.is_parameter)
    named = {part.path for t in layout.tensors(small_config(**LLAMA), layout.LLAMA) for part in t.parts}
    assert len(named) == len(rows)


def test_shards_hold_what_fits(tmp_path: Path) -> None:
    plan = [tensor_files.Planned(str(i), (4,), lambda: np.zeros(4, np.float32)) for i in range(5)]
    shards = list(tensor_files._shards(plan, 4, 32))
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert [len(shard) for shard in tensor_files._shards(plan, 4, 1)] == [1] * 5
