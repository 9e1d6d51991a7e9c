"""`flm export` and `flm import`: weights to and from Hugging Face's transformers."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from flm_jax.verbs.parsing import verb

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verbs."""
    export = verb(verbs, "export", _export, "write a checkpoint as a folder that transformers reads")
    export.add_argument("--model_dir", required=True, help="a run's directory")
    export.add_argument("--out", required=True, help="the folder to write; empty, or not there")
    export.add_argument("--format", choices=["huggingface"], default="huggingface")
    export.add_argument("--step", type=int, help="which checkpoint; the newest unless given")
    export.add_argument(
        "--tokenizer", help="the file of the tokenizer that it was trained with, to be put beside it"
    )
    export.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the tensors; the parameters' unless given",
    )
    export.add_argument(
        "--max_shard_size", type=size, default=size("5GB"), help="of a file of tensors, such as 500MB; 5GB"
    )
    export.add_argument(
        "--no_check",
        action="store_true",
        help="do not compare the logits with transformers', for which both models must fit into memory",
    )

    take = verb(verbs, "import", _import, "turn a folder of transformers into a checkpoint")
    take.add_argument("--source", required=True, help="the model's folder: config.json and its tensors")
    take.add_argument("--out", required=True, help="MODEL_DIR of the checkpoint; empty, or not there")
    take.add_argument(
        "--tokenizer",
        help="the model's tokenizer.json: ids are put in our order, OUT/tokenizer.json has them; without it they stay",
    )


def size(text: str) -> int:
    """Bytes, from a number with KB, MB or GB behind it; an argparse type."""
    found = re.fullmatch(r"(\d+)(KB|MB|GB|)", text)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 5GB, found {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _export(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flm_jax.huggingface import exporting, parity
    from flm_jax.training.checkpoints import load_params

    checkpoint = Path(options.model_dir)
    if options.step is not None:
        checkpoint = checkpoint / f"checkpoint_{options.step}"
    tokenizer = Path(options.tokenizer).expanduser() if options.tokenizer else None
    export = exporting.Export(checkpoint, options.dtype, tokenizer)
    print(export.describe())
    missing = parity.missing()
    bar = tqdm(total=export.num_bytes, unit="B", unit_scale=True, dynamic_ncols=True)

    def check(folder: Path) -> None:
        bar.close()
        if options.no_check:
            print("logits were not compared with transformers' (--no_check)")
        elif missing:
            print(
                f"logits were not compared with transformers': {' and '.join(missing)} cannot be imported. "
                "pip install 'flm_jax[huggingface]' and export again, or run both models on the same tokens"
            )
        else:
            _, params, _ = load_params(export.model_dir, export.step)
            found = parity.check(folder, export.config, params, export.dtype)
            print(f"checked: logits in transformers differ by {found:.1e} relative in float32")

    try:
        with bar:
            export.write(Path(options.out), options.max_shard_size, check, bar.update)
    except parity.ParityError as error:
        print(f"flm export: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


def _reordered(source: Path, tokenizer: str | None) -> tuple[Any, ...]:
    """The tokenizer in our order and the foreign id of each of its ids; nothing where none was given."""
    if tokenizer is None:
        return ()
    from flm_jax.huggingface.token_ids import special_ids
    from flm_jax.tasks.tokenizers.reordering import reorder

    made = reorder(Path(tokenizer).expanduser().read_bytes(), *special_ids(source))
    return made.content, made.source_ids


def _import(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flm_jax.huggingface import importing

    source = Path(options.source).expanduser()
    found = importing.Import(source, *_reordered(source, options.tokenizer))
    print(f"{options.source}: {found.metadata.config.num_params:,} parameters, step {found.step}")
    for notice in found.notices:
        print(f"note: {notice}")
    with tqdm(total=found.num_bytes, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        written = found.write(Path(options.out), bar.update)
    print(f"wrote {written}")
    return 0
