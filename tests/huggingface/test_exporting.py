import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from flm_jax import Decoder, cli, grow
from flm_jax.grow.lineage import Lineage
from flm_jax.huggingface import parity, tensor_files
from flm_jax.huggingface.exporting import Export
from flm_jax.huggingface.importing import Import
from flm_jax.training.checkpoints import load_params
from flm_jax.training.metadata import CheckpointMismatchError
from tests.huggingface import checkpoints, numpy_llama
from tests.huggingface.checkpoints import random_params
from tests.models import COVERING_BLOCKS, LLAMA, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

LLAMAS = [
    LLAMA,
    {**LLAMA, "num_kv_heads": None, "tied_readout": True},
    {**LLAMA, "use_bias": True, "xpos_theta": 500.0},
]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))


@pytest.mark.parametrize("block", LLAMAS, ids=str)
def test_a_llama_is_transformers_own(block: dict, tmp_path: Path) -> None:
    """An independent Llama in numpy that knows transformers' names computes our decoder's logits from the export."""
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", **checkpoints.LLAMA_CONSTANTS, **block)
        params = random_params(config)
        Export(checkpoints.write(tmp_path / "run", config, params)).write(tmp_path / "out")
        tokens = random_tokens(config, 1, 11)
        ours = np.asarray(Decoder(config).apply({"params": params}, tokens))[0]
    fields = config_of(tmp_path / "out")
    assert fields["architectures"] == ["LlamaForCausalLM"] and "auto_map" not in fields
    assert not list((tmp_path / "out").glob("*.py"))
    theirs = numpy_llama.logits(load_file(tmp_path / "out" / "model.safetensors"), fields, tokens[0])
    np.testing.assert_allclose(theirs, ours, rtol=1e-11, atol=1e-11 * np.abs(ours).max())


@pytest.mark.parametrize(
    "change",
    [{"output_mult": 2.0}, {"input_mult": 3.0}, {"norm_denominator": 20.0}, {"xpos_scale_base": 512.0},
     {"norm": "layernorm"}, {"activation": "gelu"}, {"parametrization": "mup"}, {"d_model": 22}],
    ids=str,
)  # fmt: skip
def test_what_is_no_llama_brings_its_own_code(change: dict, tmp_path: Path) -> None:
    config = small_config(**{**checkpoints.LLAMA_CONSTANTS, **LLAMA, **change})
    export = Export(checkpoints.write(tmp_path / "run", config, random_params(config)))
    assert not export.is_llama
    export.write(tmp_path / "out")
    assert config_of(tmp_path / "out")["auto_map"]["AutoModelForCausalLM"] == "modeling_flm.FLM"
    assert {"modeling_flm.py", "configuration_flm.py"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_flms_block_has_the_published_names_and_layout(tmp_path: Path) -> None:
    config = small_config()
    params = random_params(config)
    Export(checkpoints.write(tmp_path / "run", config, params)).write(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    block = params["layers"]
    assert set(found) == {"transformer.wte.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"} | {
        f"transformer.h.{layer}.{name}.{kind}"
        for layer in range(2)
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    }
    query, key, value = np.split(found["transformer.h.1.attn.c_attn.weight"], 3, axis=1)
    for name, part in (("query", query), ("key", key), ("value", value)):
        np.testing.assert_array_equal(part.reshape(24, 4, 8), block["attention"][f"{name}_kernel"][1])
    np.testing.assert_array_equal(found["transformer.h.0.mlp.c_proj.weight"], block["mlp"]["wo_kernel"][0])
    fields = config_of(tmp_path / "out")
    assert fields["output_mult"] / fields["mup_scale_factor"] == config.logit_scale
    assert (fields["n_embd"], fields["n_head"], fields["n_inner"], fields["model_type"]) == (24, 4, 40, "flm")


@pytest.mark.parametrize("block", [LLAMA, *COVERING_BLOCKS], ids=str)
def test_back_comes_what_went_out(block: dict, tmp_path: Path) -> None:
    """Parameters bit for bit and all metadata, one file or several."""
    config = small_config(**block)
    params = random_params(config)
    Export(checkpoints.write(tmp_path / "run", config, params)).write(
        tmp_path / "out", max_shard_bytes=20_000
    )
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    Import(tmp_path / "out").write(tmp_path / "back")
    metadata, found, step = load_params(tmp_path / "back")
    assert (step, metadata) == (7, load_params(tmp_path / "run")[0])
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_other_dtypes_are_rounded_once(tmp_path: Path) -> None:
    config = small_config()
    params = random_params(config)
    model_dir = checkpoints.write(tmp_path / "run", config, params)
    Export(model_dir, "bfloat16").write(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["transformer.wte.weight"]
    table = np.asarray(params["token_embedding"]["embedding"])
    np.testing.assert_array_equal(found, table.astype(ml_dtypes.bfloat16))
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"
    Import(tmp_path / "out").write(tmp_path / "back")
    back = load_params(tmp_path / "back")[1]["token_embedding"]["embedding"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, table.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    config = small_config()
    params = random_params(config)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(1e5)
    export = Export(checkpoints.write(tmp_path / "run", config, params), "float16")
    with pytest.raises(
        ValueError, match=r"transformer\.ln_f\.weight has values beyond float16, the largest 1e\+05"
    ):
        export.write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_no_more_than_one_file_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(num_layers=4)
    sizes = []
    save = tensor_files.save_file

    def watched(arrays: dict[str, np.ndarray], *rest: Any, **more: Any) -> None:
        sizes.append(sum(array.nbytes for array in arrays.values()))
        save(arrays, *rest, **more)

    monkeypatch.setattr(tensor_files, "save_file", watched)
    export = Export(checkpoints.write(tmp_path / "run", config, random_params(config)))
    export.write(tmp_path / "out", max_shard_bytes=12_000)
    assert len(sizes) > 3 and max(sizes) <= 12_000 and sum(sizes) == export.num_bytes
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"]["total_size"] == export.num_bytes
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "numpy") as opened:
            assert name in opened.keys()  # noqa: SIM118
            assert opened.metadata() == {"format": "pt"}


def grown(tmp_path: Path, ramp_steps: int, step: int) -> Path:
    source, target = small_config(), small_config(d_model=32, d_ff=48)
    plan = grow.plan(source, target, "msg" if ramp_steps else "lemon")
    lineage = Lineage().grown(plan, 5, 5, 20, ramp_steps, "carry")
    params = random_params(plan.target)
    return checkpoints.write(tmp_path / "run", plan.target, params, step, growth_record=lineage.to_json())


def test_a_mask_that_still_opens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatchError, match=r"in mid-ramp.*until step 15.*of step 15 or later"):
        Export(grown(tmp_path, ramp_steps=10, step=9))


@pytest.mark.parametrize(("ramp_steps", "step"), [(10, 15), (0, 5)], ids=["msg", "lemon"])
def test_a_grown_model_keeps_its_constants_and_record(ramp_steps: int, step: int, tmp_path: Path) -> None:
    model_dir = grown(tmp_path, ramp_steps, step)
    Export(model_dir).write(tmp_path / "out")
    Import(tmp_path / "out").write(tmp_path / "back")
    metadata, _, found = load_params(tmp_path / "back")
    assert (metadata, found) == (load_params(model_dir)[0], step)
    assert config_of(tmp_path / "out")["layer_norm_epsilon"] == metadata.config.norm_epsilon


def test_ids_are_ours_and_padding_is_not_the_beginning(tmp_path: Path) -> None:
    """Padding with the id that begins a document would have transformers mask that one, where no mask is given."""
    config = small_config()
    Export(checkpoints.write(tmp_path / "run", config, random_params(config))).write(tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
    assert generation == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def test_a_tokenizer_that_is_refused_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after hours of writing tensors."""
    vocabulary = checkpoints.tokenizer(tmp_path / "tokenizer.model")
    config = small_config(vocab_size=400)
    data = {**checkpoints.DATA, "tokenizer": vocabulary.sha256}
    run = checkpoints.write(tmp_path / "run", config, random_params(config), data=data)

    def refused(*_: Any) -> None:
        raise ValueError("reads this text in another way")

    monkeypatch.setattr("flm_jax.tasks.tokenizers.export.to_tokenizer_json", refused)
    made: list[int] = []
    with pytest.raises(ValueError, match="in another way"):
        Export(run, tokenizer=vocabulary.path).write(tmp_path / "out", progress=made.append)
    assert not made and not (tmp_path / "out").exists()


def test_ids_that_nobody_knows_get_no_tokenizer(tmp_path: Path) -> None:
    """An imported model without its tokenizer has foreign ids: any file of ours would name other rows."""
    config = small_config(**LLAMA)
    data: dict[str, Any] = {"length": None, "tokenizer": None, "tasks": {}}
    run = checkpoints.write(tmp_path / "run", config, random_params(config), data=data)
    vocabulary = checkpoints.tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(
        ValueError, match=r"was imported without a tokenizer.*import it again with --tokenizer"
    ):
        Export(run, tokenizer=vocabulary.path)
    Export(run).write(tmp_path / "out")
    ids = {f"{name}_token_id": None for name in ("bos", "eos", "pad")}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8")) == ids
    assert ids.items() <= config_of(tmp_path / "out").items()


def test_nothing_is_written_over_and_nothing_left(tmp_path: Path) -> None:
    config = small_config()
    export = Export(checkpoints.write(tmp_path / "run", config, random_params(config)))

    def fail(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        raise parity.ParityError("no")

    with pytest.raises(parity.ParityError):
        export.write(tmp_path / "out", check=fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="expected an empty folder"):
        export.write(tmp_path / "out")


def test_an_empty_folder_on_another_disk(tmp_path: Path) -> None:
    """A link to one, whose place no folder can take."""
    config = small_config()
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    Export(checkpoints.write(tmp_path / "run", config, random_params(config))).write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "config.json").is_file()


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    checkpoints.write(tmp_path / "run", config, random_params(config))
    monkeypatch.setattr(parity, "missing", lambda: ["torch"])
    command = [
        "export",
        f"--model_dir={tmp_path / 'run'}",
        f"--out={tmp_path / 'out'}",
        "--max_shard_size=30KB",
    ]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "not compared with transformers': torch cannot be imported" in printed and "as FLM" in printed
    assert cli.main(command) == cli.EXIT_USAGE
    assert "expected an empty folder" in capsys.readouterr().err
    assert cli.main([*command[:2], f"--out={tmp_path / 'x'}", "--step=8"]) == cli.EXIT_USAGE
    assert cli.main(["import", f"--source={tmp_path / 'out'}", f"--out={tmp_path / 'back'}"]) == 0
    assert f"wrote {tmp_path / 'back' / 'checkpoint_7'}" in capsys.readouterr().out
