"""What verbs have in common on the command line."""

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from flm_jax import gin_setup

if TYPE_CHECKING:
    from flm_jax.partitioning import MeshShape


def positive(text: str) -> int:
    """A whole number of at least 1; an argparse type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def not_negative(text: str) -> int:
    """A whole number of at least 0; an argparse type."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, found {number}")
    return number


def whole_numbers(text: str) -> list[int]:
    """Positive whole numbers with commas between them; an argparse type."""
    return [positive(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names with commas between them; an argparse type."""
    return [name for name in text.split(",") if name]


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """Adds `--mesh`, for models that one device has no memory for; `mesh_shape` reads it."""
    parser.add_argument(
        "--mesh", help="devices to split the model over, such as fsdp=8 or fsdp=4,tensor=2; one unless given"
    )


def mesh_shape(options: argparse.Namespace) -> "MeshShape":
    """What `--mesh` says.

    Raises:
        ValueError: it names no mesh axis, or no number.
    """
    from flm_jax.partitioning import MeshShape

    sizes = dict.fromkeys(("data", "fsdp", "tensor"), 1)
    for part in names(options.mesh or ""):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"expected --mesh=AXIS=DEVICES,... with the axes {', '.join(sizes)}; found {part!r}"
            )
        sizes[axis] = int(size)
    return MeshShape(**sizes)


def unescaped(text: str) -> str:
    r"""The text with a line feed for `\n`, a tab for `\t` and a backslash for `\\`; an argparse type."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], text)


def verb(verbs: argparse._SubParsersAction, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    """Adds a verb, or an action of one, that calls `run(options)`."""
    parser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def add_gin(parser: argparse.ArgumentParser, files: bool = True) -> None:
    """Adds the flags of gin: `--gin_file` unless `files` is False, search paths, and `--gin.NAME=value`."""
    parser.set_defaults(takes_gin=True)
    if files:
        parser.add_argument(
            "--gin_file", action="append", default=[], help="repeat for several; later ones win"
        )
    parser.add_argument(
        "--gin_search_paths", default="", help="comma-separated directories to find gin files in"
    )
    parser.epilog = "--gin.NAME=value binds a macro or a parameter over what the files say."


def parse_gin(options: argparse.Namespace) -> None:
    """Reads what these flags say."""
    gin_setup.parse(options.gin_file, options.gin_bindings, search_paths(options))


def search_paths(options: argparse.Namespace) -> list[str]:
    """Further directories with gin files."""
    return [path for path in options.gin_search_paths.split(",") if path]
