"""SuperGLUE's and CLUE's sets of the paper's symbolic mapping, as their files are published.

Instructions and templates are our own; the paper's are not known but for the words of one instruction (docs/iq.md).
"""

from pathlib import Path

from flm_jax.evaluation.iq.classification import SHOTS_PER_LABEL, Classification
from flm_jax.evaluation.iq.items import ItemSet
from flm_jax.evaluation.iq.rows import find

SUPERGLUE, CLUE = "SuperGLUE-IQ", "CLUE-IQ"
_BOOLEAN = ("false", "true")

SETS = {
    each.task: each
    for each in (
        Classification(
            "boolq",
            "en",
            "Read the passage and decide whether the answer to the question is yes or no.",
            "Passage: {passage}\nQuestion: {question}?",
            _BOOLEAN,
            num_items=299,
            group=SUPERGLUE,
        ),
        Classification(
            "wic",
            "en",
            "Decide whether the word has the same meaning in both sentences.",
            "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nWord: {word}",
            _BOOLEAN,
            group=SUPERGLUE,
        ),
        Classification(
            "rte",
            "en",
            "Given the premise and the hypothesis, decide whether the premise entails the hypothesis.",
            "Premise: {premise}\nHypothesis: {hypothesis}",
            ("entailment", "not_entailment"),
            num_items=277,
            group=SUPERGLUE,
        ),
        Classification(
            "wsc",
            "en",
            "Read the text and decide whether the pronoun stands for the noun.",
            "Text: {text}\nPronoun: {target[span2_text]}\nNoun: {target[span1_text]}",
            _BOOLEAN,
            num_items=103,
            group=SUPERGLUE,
        ),
        Classification(
            "afqmc",
            "zh",
            "判断两个句子的意思是否相同。",
            "句子一：{sentence1}\n句子二：{sentence2}",
            ("0", "1"),
            group=CLUE,
        ),
        Classification(
            "csl",
            "zh",
            "判断下列关键词是否全部是这篇摘要的真实关键词。",
            "摘要：{abst}\n关键词：{keyword}",
            ("0", "1"),
            num_items=208,
            group=CLUE,
        ),
        Classification(
            "ocnli",
            "zh",
            "判断前提和假设之间的关系是蕴含、矛盾还是中立。",
            "前提：{sentence1}\n假设：{sentence2}",
            ("entailment", "neutral", "contradiction"),
            skip=("-",),
            group=CLUE,
        ),
        Classification(
            "cluewsc2020",
            "zh",
            "阅读文字，判断其中的代词是否指代给出的名词。",
            "文字：{text}\n代词：{target[span2_text]}\n名词：{target[span1_text]}",
            _BOOLEAN,
            group=CLUE,
        ),
    )
}
# The folders that the sets come in, in small letters: SuperGLUE's, CLUE's (`_public`) and FewCLUE's.
_FOLDERS = {
    **{task: (task, f"{task}_public") for task in SETS},
    "cluewsc2020": ("cluewsc2020", "cluewsc2020_public", "cluewsc"),
}
_EVALUATION = ("val", "dev", "dev.50k", "test_public", "dev_few_all")
_TRAIN = ("train", *(f"train.{size}" for size in ("50k", "30k", "10k", "3k", "1k")), "train_few_all")


def available(data_dir: str | Path) -> dict[str, Path]:
    """The sets that a folder has, and the folder of each.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folders = {path.name.lower(): path for path in Path(data_dir).expanduser().iterdir() if path.is_dir()}
    found = {
        task: [folders[name] for name in names if name in folders and find(folders[name], _EVALUATION)]
        for task, names in _FOLDERS.items()
    }
    return {task: paths[0] for task, paths in found.items() if paths}


def load(
    task: str,
    data_dir: str | Path,
    seed: int = 0,
    num_items: int | None = None,
    shots_per_label: int = SHOTS_PER_LABEL,
) -> ItemSet:
    """One of `SETS` as symbols, from the folder that holds its published folder.

    Raises:
        FileNotFoundError: the set is not there.
        ValueError: a file is wrong.
    """
    folder = available(data_dir).get(task)
    if folder is None:
        raise FileNotFoundError(
            f"expected {task}'s published files in a folder {' or '.join(_FOLDERS[task])} of {data_dir}, with a file "
            f"{', '.join(_EVALUATION)} .jsonl or .json (.gz); found none"
        )
    evaluation, train = find(folder, _EVALUATION), find(folder, _TRAIN)
    assert evaluation is not None  # or it were not available
    return SETS[task].items(evaluation, train, seed, num_items, shots_per_label)
