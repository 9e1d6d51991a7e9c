"""flm_jax: train large language models in JAX by growing them, as FLM-101B did (arXiv 2309.03852)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flm_jax import grow as grow
    from flm_jax import presets as presets
    from flm_jax.config import ModelConfig as ModelConfig
    from flm_jax.model import LanguageModel as LanguageModel
    from flm_jax.network import Decoder as Decoder

__version__ = "0.1.0"

# Resolved on first use: importing flm_jax then costs what importing jax costs, and flax, optax and
# clu are paid for by those who build a model.
_HOMES = {
    "ModelConfig": "flm_jax.config",
    "Decoder": "flm_jax.network",
    "LanguageModel": "flm_jax.model",
}

_MODULES = ("grow", "presets")

__all__ = ["Decoder", "LanguageModel", "ModelConfig", "grow", "presets"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"flm_jax.{name}")
    raise AttributeError(f"module 'flm_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
