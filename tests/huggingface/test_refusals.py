"""Models that are not of ours, and files that are not whole: one error that names the field, the tensor or the file."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flm_jax.huggingface.importing import Import
from tests.huggingface.folders import LLAMA_FIELDS, PUBLISHED, folder, llama_weights, published_weights


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "'llama3'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "mlp_bias = False, expected True"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"model_type": "mistral"}, "sliding_window = 4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "'qwen3' .Qwen3ForCausalLM."),
        ({"head_dim": 3}, "ModelConfig.head_dim must be even"),
        ({"flm_jax": {"format": 9}}, "record of an export of format 1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_function_that_is_not_ours_is_refused(change: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        Import(folder(tmp_path / "in", {**LLAMA_FIELDS, **change}, llama_weights()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation_function": "gelu"}, "activation_function = 'gelu'"),
        ({"relative_encoding": "alibi"}, "relative_encoding = 'alibi'"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False"),
        ({"n_embd": None}, "n_embd"),
    ],
    ids=str,
)
def test_another_flm_is_refused(change: dict, named: str, tmp_path: Path) -> None:
    fields = {name: value for name, value in {**PUBLISHED, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=named):
        Import(folder(tmp_path / "in", fields, published_weights()))


def test_tensors_that_are_wrong_are_named(tmp_path: Path) -> None:
    weights = llama_weights()
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=rf"expected the tensor {name} \[40, 24\].*found none"):
        Import(
            folder(tmp_path / "a", LLAMA_FIELDS, {key: each for key, each in weights.items() if key != name})
        )
    with pytest.raises(
        ValueError, match=rf"expected {name} of shape \[40, 24\].*found \[24, 40\] in .*model\."
    ):
        Import(folder(tmp_path / "b", LLAMA_FIELDS, {**weights, name: np.ascontiguousarray(weights[name].T)}))
    more = {**weights, "model.layers.0.self_attn.q_norm.weight": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match=r"found a tensor model\.layers\.0\.self_attn\.q_norm\.weight"):
        Import(folder(tmp_path / "c", LLAMA_FIELDS, more))
    with pytest.raises(ValueError, match=r"expected model\.norm\.weight in .* found I8: quantized"):
        Import(folder(tmp_path / "d", LLAMA_FIELDS, {**weights, "model.norm.weight": np.ones(24, np.int8)}))


def test_files_that_are_wrong_are_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", LLAMA_FIELDS, llama_weights())
    file = source / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is damaged or cut off: model\..* lies beyond its end"
    ):
        Import(source)
    file.write_bytes(content[:50])
    with pytest.raises(ValueError, match="its header cannot be read"):
        Import(source)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        Import(source)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"says that model\.norm\.weight is in .*00001-of-00002"):
        Import(source)
    save_file({"x": np.ones(2, np.float32)}, source / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"says that model\.norm\.weight is in .* found it not there"):
        Import(source)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Import(tmp_path / "nowhere")


def test_pickled_weights_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "in", LLAMA_FIELDS, llama_weights())
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r"needs torch, which is not installed: pip install 'flm_jax\[huggingface\]'"
    ):
        Import(source)
