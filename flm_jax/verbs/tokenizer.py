"""`flm tokenizer train, wrap, export, report`."""

import argparse

from flm_jax.verbs.parsing import positive, verb


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    actions = verbs.add_parser("tokenizer", help="make, take over or measure a tokenizer").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    train = verb(actions, "train", _train, "train a sentencepiece model with byte fallback")
    train.add_argument("--vocab_size", type=positive, required=True, help="number of pieces")
    train.add_argument("--out", required=True, help="the model file to write")

    wrap = verb(actions, "wrap", _wrap, "take a tokenizer over from tiktoken or Hugging Face, in one file")
    source = wrap.add_mutually_exclusive_group(required=True)
    source.add_argument("--tiktoken", help="name of an encoding, such as cl100k_base")
    source.add_argument("--huggingface", help="tokenizer.json, or the folder of a model that has one")
    wrap.add_argument("--out", required=True, help="the file to write")

    export = verb(actions, "export", _export, "write a tokenizer for transformers, with the same ids")
    export.add_argument("--tokenizer", required=True, help="its file")
    export.add_argument(
        "--out", required=True, help="the folder to write tokenizer.json and two more files to"
    )

    report = verb(actions, "report", _report, "what tokenizers make of text, language by language")
    report.add_argument("--tokenizer", action="append", required=True, help="its file; repeat to compare")

    for parser, use in ((train, "train on"), (report, "measure")):
        parser.add_argument(
            "--input",
            action="append",
            required=True,
            help="[LANGUAGE=]PATTERN of .jsonl or text files, also compressed; repeat for each language. Each has an "
            "equal part of the bytes; without LANGUAGE each file is one",
        )
        parser.add_argument("--field", default="text", help="of the JSON lines that holds the text")
        parser.add_argument(
            "--max_bytes", type=positive, default=20_000_000, help=f"of text to {use}, over all inputs"
        )
        parser.add_argument("--json", help="write the report's numbers to this file")


def _train(options: argparse.Namespace) -> int:
    from flm_jax.tasks.vocabulary import train_tokenizer_from_files

    train_tokenizer_from_files(
        options.input,
        options.out,
        vocab_size=options.vocab_size,
        field=options.field,
        max_bytes=options.max_bytes,
        json_file=options.json,
    )
    return 0


def _wrap(options: argparse.Namespace) -> int:
    from flm_jax.tasks import tokenizer_report, vocabulary

    if options.tiktoken:
        wrapped = vocabulary.wrap_tiktoken(options.tiktoken, options.out)
    else:
        wrapped = vocabulary.wrap_huggingface(options.huggingface, options.out)
    print(tokenizer_report.measure(wrapped, {}).summary())
    return 0


def _export(options: argparse.Namespace) -> int:
    from flm_jax.tasks.tokenizers.export import export_tokenizer
    from flm_jax.tasks.vocabulary import Vocabulary

    vocabulary = Vocabulary(options.tokenizer)
    files = export_tokenizer(vocabulary, options.out)
    print(f"{vocabulary.size:,} pieces ({vocabulary.kind}) with their ids in:", *files, sep="\n  ")
    return 0


def _report(options: argparse.Namespace) -> int:
    from flm_jax.tasks import tokenizer_report
    from flm_jax.tasks.vocabulary import Vocabulary

    vocabularies = [Vocabulary(path) for path in options.tokenizer]
    reports = tokenizer_report.of_files(vocabularies, options.input, options.field, options.max_bytes)
    print("\n\n".join(report.table() for report in reports))
    if options.json:
        tokenizer_report.write_json(reports, options.json)
    return 0
