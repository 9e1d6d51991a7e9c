"""Reading gin files and `--gin.NAME=value` flags, and refusing what gin lets pass."""

import ast
import contextlib
import difflib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gin

_PACKAGE = Path(__file__).resolve().parent
# `gin_configs/...` is found beside the package in a checkout and inside it once installed.
_SEARCH_PATHS = (_PACKAGE.parent, _PACKAGE)
# Names that files share between verbs and with t5x: spelled right even where this verb has no use for them.
_SHARED_MACROS = frozenset(
    {"MODEL", "MODEL_CONFIG", "MIXTURE_OR_TASK_NAME", "MIXTURE_OR_TASK_MODULE", "TASK_FEATURE_LENGTHS",
     "USE_CACHED_TASKS", "PREPARED_DIR", "VOCABULARY"}
)  # fmt: skip


class GinError(ValueError):
    """A gin file or flag is wrong; says which, and what was probably meant."""


def parse(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Clears gin's configuration and reads `files` in order, then `bindings`, which win.

    Args:
        files: gin files, looked up in the working directory, in `search_paths`, and where the library's
            own `gin_configs/` lie.
        bindings: Such as `TRAIN_STEPS=100` or `ModelConfig.d_model=128`. A value that is no gin literal is taken
            as a string, so that `MODEL_DIR=/tmp/run` needs no quotes within quotes.
        search_paths: Further directories.
        defaults: Macro to gin value, for those that are in use and that nothing else gives a value.

    Raises:
        GinError: a file is missing or cannot be parsed, a binding names nothing, a macro is set and never used,
            or used and never set.
    """
    gin.clear_config()
    directories = ["", *map(os.fspath, search_paths), *map(os.fspath, _SEARCH_PATHS)]
    for file in files:
        if not any(os.path.isfile(os.path.join(directory, file)) for directory in directories):
            looked = ", ".join(directory or "the working directory" for directory in directories)
            raise GinError(
                f"--gin_file={file}: no such file in {looked} (add others with --gin_search_paths)"
            )
    gin.config._LOCATION_PREFIXES[:] = directories
    # gin's other reader takes a path for a Python package: it logs an error for each include that lies in a search
    # path, and fails where a directory of that name is a namespace package, as a user's own gin_configs/ is.
    gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
    try:
        gin.parse_config_files_and_bindings(list(files), [], finalize_config=False)
        # A flag that binds a parameter over a file's macro leaves that macro without a use, which is no mistake.
        _, used_by_files = _macros()
        off_in_files = _switched_off()
        gin.parse_config([_as_gin(binding) for binding in bindings])
        gin.parse_config([f"{name} = {defaults[name]}" for name in sorted(_wanting() & set(defaults))])
    except (OSError, ValueError, TypeError, SyntaxError, NameError, AttributeError, ImportError) as error:
        raise GinError(_one_paragraph(error) + _hint(str(error))) from error
    _check_macros(used_by_files, off_in_files)
    gin.finalize()


def _as_gin(binding: str) -> str:
    """`NAME=value` with words put into quotes: `MODEL_DIR=/tmp/a` becomes `MODEL_DIR = '/tmp/a'`."""
    name, separator, value = binding.partition("=")
    if not separator or not name.strip():
        raise GinError(f"expected --gin.NAME=value, found --gin.{binding}")
    value = value.strip()
    if value[:1] not in ("@", "%", "[", "(", "{"):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    return f"{name.strip()} = {value}"


def _macros() -> tuple[set[str], set[str]]:
    """The macros that are set, and those that are used."""
    code = _code()
    defined = set(re.findall(r"(?m)^([A-Za-z_]\w*)\s*=", code))
    return defined, set(re.findall(r"%([A-Za-z_]\w*)(?![\w.])", code))


def _wanting() -> set[str]:
    """The macros that are in use and have no value."""
    defined, used = _macros()
    return (used - defined) | set(re.findall(r"(?m)^([A-Za-z_]\w*)\s*=\s*%gin\.REQUIRED", _code()))


def bound(files: Sequence[str], search_paths: Sequence[str], parameter: str) -> bool:
    """Whether files give a parameter such as `Trainer.stages` a value, in any scope; they stay parsed."""
    with contextlib.suppress(
        GinError
    ):  # said where they are parsed to be used; what has been read till then tells
        parse(files, [], search_paths)
    names = re.findall(r"(?m)^(?:[\w/]+/)?([\w.]+)\s*=", _code())
    return any(name == parameter or name.endswith(f".{parameter}") for name in names)


def value(parameter: str, otherwise: Any) -> Any:
    """Of a parameter, by what has been parsed; `otherwise` where nothing binds it."""
    try:
        return gin.query_parameter(parameter)
    except ValueError:
        return otherwise


def _code() -> str:
    """The configuration without comments and strings: a % within a string is no reference."""
    text = re.sub(r"(?m)^\s*#.*$", "", gin.config_str(max_line_length=10**6))
    return re.sub(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", "''", text)


def _switched_off() -> set[str]:
    """The macros that are None: a file sets so what has no meaning in its runs, TRAIN_STEPS where there are stages."""
    return set(re.findall(r"(?m)^([A-Za-z_]\w*)\s*=\s*None\s*$", _code()))


def _check_macros(used_by_files: set[str], off_in_files: set[str]) -> None:
    """Refuses what gin accepts: a macro that nothing reads, which is what a misspelt one is."""
    defined, used = _macros()
    code = _code()
    for name in sorted(defined - _switched_off() - used - used_by_files - _SHARED_MACROS):
        if name in off_in_files:
            raise GinError(
                f"the gin macro {name} is set, but nothing uses it: a --gin_file has switched it off ({name} = None), "
                "because what it stands for is said elsewhere (for TRAIN_STEPS: schedule.Stage.steps or .tokens, under "
                "the scope of each stage)"
            )
        close = difflib.get_close_matches(name, used, n=1)
        hint = f"did you mean {close[0]}?" if close else f"in use are {', '.join(sorted(used))}"
        raise GinError(f"the gin macro {name} is set, but nothing uses it; {hint}")
    for name in sorted(used - defined):
        raise GinError(
            f"the gin macro {name} is used, but not set: give --gin.{name}=value, or a --gin_file that sets it"
        )
    referenced = set(re.findall(r"@([\w/]+)/[\w.]+", code))
    for scope in sorted(set(re.findall(r"(?m)^([\w/]+)/[\w.]+\.\w+\s*=", code)) - referenced):
        raise GinError(
            f"the gin scope {scope!r} is bound, but nothing refers to it; in use are {', '.join(sorted(referenced))}"
        )
    required = re.search(r"(?m)^([\w./]+)\s*=\s*%gin\.REQUIRED", code)
    if required:
        name = required.group(1)
        raise GinError(f"{name} has no default: give --gin.{name}=value, or a --gin_file that sets it")


def built(make: Callable[[], Any]) -> Any:
    """What gin makes; a value of the wrong type is the configuration's fault, not the program's.

    Raises:
        GinError: a binding is missing, or of the wrong type.
    """
    try:
        return make()
    except TypeError as error:
        raise GinError(f"a gin binding is missing or has a value of the wrong type: {error}") from error


def unused_macros() -> list[str]:
    """A line for each macro that is set and never used: for t5x, whose files and users may mean to, or misspell one."""
    defined, used = _macros()
    lines = []
    for name in sorted(defined - used - _switched_off() - _SHARED_MACROS):
        close = difflib.get_close_matches(name, used, n=1)
        lines.append(
            f"the gin macro {name} is set, but nothing uses it{f'; did you mean {close[0]}?' if close else ''}"
        )
    return lines


def _one_paragraph(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines() if line.strip())


def _hint(message: str) -> str:
    """What was probably meant by a name that gin does not know."""
    if unknown := re.search(r"No configurable matching '([\w./]+)'", message):
        bound = {
            name.rsplit(".", 2)[-2] for name in re.findall(r"(?m)^(?:[\w/]+/)?([\w.]+\.\w+)\s*=", _code())
        }
        close = difflib.get_close_matches(unknown.group(1).rsplit(".", 1)[-1], bound, n=1)
        return f"; did you mean {close[0]}?" if close else ""
    found = re.search(r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", message)
    if not found:
        return ""
    configurable = gin.get_configurable(found.group(1))
    function = inspect.unwrap(configurable.__init__ if inspect.isclass(configurable) else configurable)
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    close = difflib.get_close_matches(found.group(2), names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; its parameters are {', '.join(names)}"
