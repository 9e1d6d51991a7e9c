"""What transformers computes from our exports, and we from its models; skipped where torch is not installed."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder, ModelConfig, cli
from flm_jax.huggingface import parity
from flm_jax.huggingface.exporting import Export
from flm_jax.huggingface.importing import Import
from flm_jax.training.checkpoints import load_params
from tests.huggingface import checkpoints
from tests.huggingface.checkpoints import random_params
from tests.models import COVERING_BLOCKS, LLAMA, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")
torch = pytest.importorskip("torch", reason="torch is no dependency: pip install 'flm_jax[huggingface]'")
transformers = pytest.importorskip("transformers", reason="pip install 'flm_jax[huggingface]'")

ROPE = {"xpos_scale_base": None}


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code beside weights is imported under the folder's name: each test's has another."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def exported(tmp_path: Path, config: ModelConfig, params: Any, **settings: Any) -> Path:
    out = tmp_path / f"out_{tmp_path.name}"
    Export(checkpoints.write(tmp_path / "run", config, params), **settings).write(out)
    return out


def load(folder: Path, **settings: Any) -> Any:
    settings = {"trust_remote_code": True, **settings}
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **settings
    )
    assert not any(found.values()), found  # missing, unexpected, mismatched
    return model.eval()


def logits(model: Any, tokens: np.ndarray, **more: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(np.array(tokens)).long(), **more).logits.float().numpy()


def assert_close(found: np.ndarray, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


BLOCKS = [*COVERING_BLOCKS, {**COVERING_BLOCKS[3], **ROPE, "norm_denominator": 20.0}, LLAMA,
          {**LLAMA, **checkpoints.LLAMA_CONSTANTS}]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_computes_and_generates_the_same(block: dict, tmp_path: Path) -> None:
    config = small_config(norm_epsilon=1e-3, **block)
    params = random_params(config)
    model = load(exported(tmp_path, config, params))
    assert type(model).__name__ == ("LlamaForCausalLM" if "parametrization" in block else "FLM")
    tokens = random_tokens(config, 2, 40)
    ours = Decoder(config).apply({"params": params}, tokens)
    assert_close(logits(model, tokens), ours)
    # Rows padded on the left see what they see alone, and the cache goes on where the prompt ended.
    short = np.concatenate([np.ones((1, 3), np.int32), tokens[:1, :5]], axis=1)
    mask = torch.tensor([[0] * 3 + [1] * 5, [1] * 8])
    both = torch.from_numpy(np.concatenate([short, tokens[1:, :8]])).long()
    with torch.no_grad():
        padded = model(both, attention_mask=mask).logits.numpy()
    assert_close(padded[0, 3:], ours[0, :5])
    assert_close(padded[1], ours[1, :8])
    drawn = model.generate(both, attention_mask=mask, max_new_tokens=12, do_sample=False)[:, 8:].numpy()
    for row, prompt in zip(drawn, (tokens[0, :5], tokens[1, :8]), strict=True):
        wanted = greedy(config, params, prompt, 12)
        assert row[: len(wanted)].tolist() == wanted


def greedy(config: ModelConfig, params: Any, prompt: np.ndarray, length: int) -> list[int]:
    """The likeliest next tokens by our decoder without a cache, up to the end of the text."""
    step = jax.jit(Decoder(config).apply)
    row = np.zeros((1, len(prompt) + length), np.int32)
    row[0, : len(prompt)] = prompt
    for place in range(len(prompt), row.shape[1]):
        row[0, place] = np.argmax(step({"params": params}, row)[0, place - 1])
        if row[0, place] == 1:
            break
    return row[0, len(prompt) : place + 1].tolist()


def test_a_trained_flm(tmp_path: Path) -> None:
    """A few steps are enough for norms and biases to have left their initial values."""
    config = small_config()
    start = Decoder(config).init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    params = checkpoints.trained(config, start)
    assert float(jnp.abs(params["layers"]["mlp"]["wi_bias"]).min()) > 0
    folder = exported(tmp_path, config, params)
    tokens = random_tokens(config, 2, 33)
    assert_close(logits(load(folder), tokens), Decoder(config).apply({"params": params}, tokens))
    assert parity.check(folder, config, params, np.dtype(np.float32)) < 1e-5


def test_bfloat16_runs_in_bfloat16(tmp_path: Path) -> None:
    config = small_config()
    params = random_params(config)
    model = load(exported(tmp_path, config, params, dtype="bfloat16"), dtype="auto")
    assert model.dtype == torch.bfloat16
    tokens = random_tokens(config, 1, 20)
    assert_close(logits(model, tokens), Decoder(config).apply({"params": params}, tokens), 0.05)


def test_saved_by_transformers_and_read_again(tmp_path: Path) -> None:
    """What `save_pretrained` writes, code and record included, is an export of ours still."""
    config = small_config()
    params = random_params(config)
    load(exported(tmp_path, config, params)).save_pretrained(tmp_path / "saved", max_shard_size="30KB")
    Import(tmp_path / "saved").write(tmp_path / "back")
    metadata, found, step = load_params(tmp_path / "back")
    assert (metadata.config, step) == (config, 7)
    jax.tree.map(np.testing.assert_array_equal, found, params)


SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip
FOREIGN = {
    "llama": ("LlamaConfig", {}),
    "grouped": ("LlamaConfig", {"num_key_value_heads": 2, "head_dim": 12, "rope_theta": 5e5}),
    "tied with biases": (
        "LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "mistral": ("MistralConfig", {"num_key_value_heads": 1, "sliding_window": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_their_llamas_are_ours(name: str, safe: bool, tmp_path: Path) -> None:
    kind, changes = FOREIGN[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**SMALL, **changes)
    ).eval()
    with torch.no_grad():
        for param in model.parameters():  # biases and gains too, which begin at 0 and 1
            param.add_(0.1 * torch.randn_like(param))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    if not safe:
        for file in (tmp_path / "theirs").glob("model*"):
            file.unlink()
        torch.save(model.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    Import(tmp_path / "theirs").write(tmp_path / "ours")
    metadata, params, _ = load_params(tmp_path / "ours")
    config = dataclasses.replace(metadata.config, dtype="float32")
    assert config.parametrization == "standard" and config.param_dtype == "float32"
    tokens = random_tokens(config, 2, 30)
    assert_close(logits(model, tokens), Decoder(config).apply({"params": params}, tokens))
    export = Export(tmp_path / "ours")
    assert export.is_llama
    export.write(tmp_path / "again")
    np.testing.assert_array_equal(logits(load(tmp_path / "again"), tokens), logits(model, tokens))


@pytest.mark.parametrize(("method", "kind"), [("composable", "LlamaForCausalLM"), ("pad", "FLM")])
def test_a_growth_of_an_imported_llama_goes_out_again(
    method: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its function is the first model's; `pad` leaves a denominator that Llama has not."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    assert cli.main(["import", f"--source={tmp_path / 'theirs'}", f"--out={tmp_path / 'ours'}"]) == 0
    wider = {"d_model": 64, "d_ff": 96, "num_layers": 5, "num_heads": 8, "num_kv_heads": 4}
    grow = ["grow", f"--checkpoint={tmp_path / 'ours'}", f"--out={tmp_path / 'grown'}", f"--method={method}"]
    sizes = [f"--gin.config.ModelConfig.{name}={value}" for name, value in wider.items()]
    assert cli.main([*grow, *sizes]) == 0
    out = tmp_path / f"out_{method}"
    assert cli.main(["export", f"--model_dir={tmp_path / 'grown'}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "verified in" in printed and "checked: logits in transformers differ by" in printed
    grown, tokens = load(out), random_tokens(small_config(), 2, 20)
    assert type(grown).__name__ == kind and grown.config.num_hidden_layers == 5
    assert_close(logits(grown, tokens), logits(model, tokens))


def test_a_difference_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check compares with the checkpoint: a tensor that was spoilt on the way does not get out."""
    config = small_config()
    params = random_params(config)
    export = Export(checkpoints.write(tmp_path / "run", config, params))

    def spoilt(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**fields, "output_mult": 2.001}))
        parity.check(folder, config, params, export.dtype)

    with pytest.raises(parity.ParityError, match=r"differ from the checkpoint's by 5\.0e-04 relative"):
        export.write(tmp_path / "out", check=spoilt)
    assert not (tmp_path / "out").exists()


def test_our_package_does_not_import_torch(tmp_path: Path) -> None:
    config = small_config()
    checkpoints.write(tmp_path / "run", config, random_params(config))
    program = (
        "import sys; from flm_jax import cli\n"
        "assert cli.main(['export', '--model_dir=run', '--out=out', '--no_check']) == 0\n"
        "assert cli.main(['import', '--source=out', '--out=back']) == 0\n"
        "assert not {'torch', 'transformers', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
