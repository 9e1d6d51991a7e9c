"""`flm generate`: prompts from flags, a file or standard input; text to the terminal as it comes, or to a file."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flm_jax.verbs.parsing import add_mesh, mesh_shape, positive, unescaped, verb

if TYPE_CHECKING:
    from flm_jax.generation import Writer

_RESET = "/reset"


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    generate = verb(verbs, "generate", _generate, "continue prompts with a checkpoint, or chat with it")
    generate.add_argument("--model_dir", required=True, help="a run's directory")
    generate.add_argument("--step", type=int, help="which checkpoint; the newest unless given")
    generate.add_argument(
        "--tokenizer", required=True, help="the file of the tokenizer that it was trained with"
    )
    source = generate.add_mutually_exclusive_group()
    source.add_argument("--prompt", action="append", help="repeat for several")
    source.add_argument(
        "--prompt_file",
        help='.jsonl: an object {"prompt": ...} a line; another file is one prompt. Standard input is one unless one '
        "of these is given. A line feed at the end of a file is left out",
    )
    source.add_argument(
        "--chat", action="store_true", help=f"answer line by line; {_RESET} begins anew, Ctrl-D ends"
    )
    generate.add_argument("--out", help='write {"prompt": ..., "completion": ...} a line to this .jsonl file')
    generate.add_argument("--max_new_tokens", type=positive, default=64)
    generate.add_argument(
        "--stop",
        action="append",
        default=[],
        type=unescaped,
        help=r"end before this string; \n is a line feed, \t a tab, \\ a backslash; repeat for several",
    )
    generate.add_argument("--batch_size", type=positive, default=8, help="prompts at a time")
    add_mesh(generate)
    _add_sampling(generate)
    _add_chat(generate)


def _add_sampling(generate: argparse.ArgumentParser) -> None:
    generate.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    generate.add_argument("--top_k", type=int, default=0, help="draw among the k likeliest; 0 for no limit")
    generate.add_argument(
        "--top_p", type=float, default=0.95, help="draw among the likeliest of this probability in all"
    )
    generate.add_argument(
        "--min_p",
        type=float,
        default=0.0,
        help="draw among those with this share of the likeliest's probability",
    )
    generate.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        help="above 1: avoid tokens of the prompt and the text",
    )
    generate.add_argument("--seed", type=int, default=0, help="of the draws")


def _add_chat(generate: argparse.ArgumentParser) -> None:
    generate.add_argument(
        "--chat_prompt",
        type=unescaped,
        help="how training wrote a question: its gin binding Dialogues.prompt, with the escapes of --stop; {user} and "
        "a line feed unless given",
    )
    generate.add_argument(
        "--chat_system",
        type=unescaped,
        help="how training wrote a system message: its gin binding Dialogues.system; likewise",
    )
    generate.add_argument("--system_message", help="what a chat begins with")


# Flags of a chat, and what they set of a `Conversation`.
_CHAT = {"chat_prompt": "prompt", "chat_system": "system", "system_message": "system_message"}


def _generate(options: argparse.Namespace) -> int:
    if options.chat and options.out:
        raise ValueError("--chat prints its answers: leave out --out, or --chat")
    chat = {flag: value for flag in _CHAT if (value := getattr(options, flag)) is not None}
    if chat and not options.chat:
        raise ValueError(
            f"--{', --'.join(chat)} would change nothing without --chat: give that too, or leave it out"
        )
    # What is wrong with the flags is said before a checkpoint is read.
    prompts = [] if options.chat else _prompts(options)
    from flm_jax.evaluation.opened import open_checkpoint
    from flm_jax.generation import Sampling, Writer
    from flm_jax.generation.text_stream import TextStream
    from flm_jax.tasks.vocabulary import Vocabulary

    TextStream(options.stop)  # which refuses what is no stop string, before a checkpoint is read

    settings = {
        "max_new_tokens": options.max_new_tokens,
        "stop": options.stop,
        "sampling": Sampling(
            options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty
        ),
    }
    vocabulary = Vocabulary(options.tokenizer)
    opened = open_checkpoint(options.model_dir, options.step, mesh_shape(options))
    opened.metadata.check_tokenizer(vocabulary.sha256, options.tokenizer)
    writer = Writer(opened.config, opened.params, vocabulary, opened.growth, opened.mesh)
    notice = _Notice(opened.config.max_length, options.max_new_tokens)

    if options.chat:
        from flm_jax.generation.conversation import Conversation

        conversation = Conversation(vocabulary, **{_CHAT[flag]: value for flag, value in chat.items()})
        _chat(conversation, writer, options.seed, settings, notice)
        return 0
    notice(max(len(writer.encode(prompt)) for prompt in prompts))
    settings["seed"] = options.seed
    if len(prompts) == 1 and not options.out and not _is_jsonl(options):
        parts = writer.stream(prompts[0], **settings)
        print(f"{prompts[0]}|" if options.prompt else "", end="", flush=True)
        _show(parts)
        return 0
    texts = _complete(writer, prompts, {**settings, "batch_size": options.batch_size})
    _hand_out(options, prompts, texts)
    return 0


class _Notice:
    """Says once that a text is longer than what the model was trained on."""

    def __init__(self, max_length: int, max_new_tokens: int) -> None:
        self._max_length, self._max_new_tokens = max_length, max_new_tokens
        self._said = False

    def __call__(self, prompt_length: int) -> None:
        if prompt_length + self._max_new_tokens <= self._max_length or self._said:
            return
        self._said = True
        print(
            f"flm generate: a prompt of {prompt_length:,} tokens and {self._max_new_tokens:,} new ones go beyond the "
            f"{self._max_length:,} tokens that the model was trained on (ModelConfig.max_length)",
            file=sys.stderr,
        )


def _is_jsonl(options: argparse.Namespace) -> bool:
    return bool(options.prompt_file) and options.prompt_file.endswith(".jsonl")


def _prompts(options: argparse.Namespace) -> list[str]:
    """Of the flags, the file or standard input.

    Raises:
        ValueError: a line of the file is no object with a prompt, or there is none, or what is given is not UTF-8.
    """
    if options.prompt:
        return [_unicode(prompt, "--prompt") for prompt in options.prompt]
    if not options.prompt_file:
        if sys.stdin.isatty():
            print("flm generate: type the prompt, end it with Ctrl-D", file=sys.stderr)
        return [_unicode(sys.stdin.read(), "standard input").removesuffix("\n")]
    file = Path(options.prompt_file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"expected prompts, found no file at {file}: change --prompt_file")
    text = _unicode(file.read_text("utf-8", "surrogateescape"), options.prompt_file)
    if not _is_jsonl(options):
        return [text.removesuffix("\n")]
    found = [
        _prompt_of(line, f"{options.prompt_file}:{number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not found:
        raise ValueError(
            f"expected a prompt a line, found none in {options.prompt_file}: change --prompt_file"
        )
    return found


def _prompt_of(line: str, place: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise ValueError(
            f'expected an object {{"prompt": "..."}} a line, found {line[:60]!r} in {place}: change --prompt_file'
        )
    return _unicode(prompt, place)


def _unicode(text: str, place: str) -> str:
    """The text; refused where it holds bytes, or halves of surrogate pairs, that stand for no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = text[error.start : error.start + 10]
        raise ValueError(
            f"expected text in UTF-8 from {place}, found {found!r}: write it in UTF-8"
        ) from error
    return text


def _complete(writer: "Writer", prompts: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """What is written behind each prompt, with a progress bar."""
    from tqdm import tqdm

    texts = [""] * len(prompts)
    with tqdm(total=len(prompts), desc="generating", unit="prompt", dynamic_ncols=True, disable=None) as bar:
        for place, text in writer.completions(prompts, **settings):
            texts[place] = text
            bar.update()
    return texts


def _hand_out(options: argparse.Namespace, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """To the file, whole or not at all, or to standard output in the form in which the prompts were given."""
    from flm_jax.json_file import write_text

    pairs = list(zip(prompts, texts, strict=True))
    records = (
        json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False) for prompt, text in pairs
    )
    if options.out:
        write_text(options.out, "".join(f"{record}\n" for record in records))
        print(f"{len(pairs):,} completions: {options.out}")
        return
    for line in records if _is_jsonl(options) else (f"{prompt}|{text}" for prompt, text in pairs):
        print(line)


def _chat(
    conversation: Any, writer: "Writer", seed: int, settings: dict[str, Any], notice: Callable[[int], None]
) -> None:
    """Answers the lines of standard input, each with draws of its own."""
    for turn, line in enumerate(_lines()):
        question = _unicode(line, "standard input").removesuffix("\n")
        if question.strip() == _RESET:
            conversation.reset()
        elif question.strip():
            tokens = conversation.ask(question)
            notice(1 + len(tokens))
            conversation.answer(_show(writer.stream(tokens, **settings, seed=seed + turn)))


def _lines() -> Iterator[str]:
    """Of standard input, asked for where that is a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line


def _show(parts: Iterator[str]) -> str:
    """Prints the parts of a text as they come, and a line feed; the text."""
    shown = ""
    for part in parts:
        print(part, end="", flush=True)
        shown += part
    print(flush=True)
    return shown
