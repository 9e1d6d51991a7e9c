"""Gin files as text: what they import, bind, define and use, without importing t5x."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gin import config_parser

ROOT = Path(__file__).parents[2]
T5X = sorted(path.stem for path in (ROOT / "gin_configs/t5x").glob("*.gin"))
PRESETS = sorted(path.stem for path in (ROOT / "gin_configs/models").glob("*.gin"))
# What t5x's own run files leave to be said.
T5X_REQUIRED = {
    "pretrain": {"MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS", "MODEL_DIR"},
    "eval": {"MIXTURE_OR_TASK_NAME", "CHECKPOINT_PATH", "EVAL_OUTPUT_DIR"},
    "infer": {"MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "CHECKPOINT_PATH", "INFER_OUTPUT_DIR"},
}


@dataclass
class Contents:
    """Of one or several files, in the order in which gin reads them."""

    bindings: list[tuple[str, str, str]] = field(default_factory=list)  # module, path within it, parameter
    references: list[tuple[str, str]] = field(default_factory=list)  # module, path within it
    defined: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    of_t5x: list[str] = field(default_factory=list)  # its files that are included

    def read(self, path: str) -> "Contents":
        """Adds a file and what it includes of ours."""
        return self.parse((ROOT / path).read_text("utf-8"), path)

    def parse(self, text: str, path: str) -> "Contents":
        """Adds what `text` says; `path` names it."""
        modules: dict[str, str] = {}
        found: list[str] = []

        class Delegate(config_parser.ParserDelegate):
            def configurable_reference(self, scoped_name: str, evaluate: bool) -> str:
                found.append(scoped_name.rpartition("/")[2])
                return f"@{scoped_name}"

            def macro(_, scoped_name: str) -> str:
                self.used.add(scoped_name)
                return f"%{scoped_name}"

        for statement in config_parser.ConfigParser(text, Delegate()):
            if isinstance(statement, config_parser.ImportStatement):
                name = statement.alias or statement.module.rpartition(".")[2]
                modules[name] = statement.module
            elif isinstance(statement, config_parser.IncludeStatement):
                if statement.filename.startswith("t5x/"):
                    self.of_t5x.append(statement.filename)
                else:
                    self.read(statement.filename)
            elif isinstance(statement, config_parser.BindingStatement):
                if not statement.arg_name:
                    self.defined[statement.selector] = statement.value
                    continue
                self.bindings.append((*_resolved(statement.selector, modules, path), statement.arg_name))
        self.references += [_resolved(name, modules, path) for name in found]
        self.used.discard("gin.REQUIRED")
        return self


def _resolved(selector: str, modules: dict[str, str], path: str) -> tuple[str, str]:
    alias, _, rest = selector.partition(".")
    assert alias in modules, f"{path} names {selector}, and imports no {alias}"
    return modules[alias], rest


def functions_of(module: str) -> dict[str, set[str]]:
    """Name to parameters of what a module of `flm_jax.t5x` defines, without importing it."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    found = {}
    for node in tree.body:
        function: ast.stmt | None = node
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            function = next((part for part in methods if part.name == "__init__"), None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and isinstance(function, ast.FunctionDef):
            found[node.name] = {arg.arg for arg in (*function.args.args, *function.args.kwonlyargs)}
    return found


def importable(found: list[tuple[str, str]]) -> Iterator[tuple[str, str, Any]]:
    """Module, path and what it is, for what is in this environment without t5x."""
    for module, path in found:
        if module.partition(".")[0] not in ("flm_jax", "seqio") or module.startswith("flm_jax.t5x"):
            continue
        target = importlib.import_module(module)
        for name in path.split("."):
            target = getattr(target, name)
        yield module, path, target


def parameters_of(target: Any) -> set[str]:
    """What gin may bind."""
    function = target.__init__ if inspect.isclass(target) else target
    return set(inspect.signature(function).parameters)
