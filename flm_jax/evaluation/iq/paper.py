"""The IQ scores that FLM-101B's paper prints (arXiv 2309.03852, tables 7 to 11), in percent."""

from typing import NamedTuple


class Scores(NamedTuple):
    """Of one task or of a group's mean; None where none is printed."""

    gpt3: float | None
    glm_130b: float
    flm_101b: float


TASKS = {
    "boolq": Scores(50.84, 40.13, 49.50),
    "wic": Scores(53.33, 48.67, 50.33),
    "rte": Scores(48.38, 47.65, 48.38),
    "wsc": Scores(37.86, 56.31, 38.83),
    "afqmc": Scores(None, 33.33, 38.33),
    "csl": Scores(None, 53.85, 55.29),
    "ocnli": Scores(None, 34.00, 27.33),
    "cluewsc2020": Scores(None, 38.67, 47.33),
    "counting": Scores(82.43, 60.81, 69.59),
    "replace_lowercase": Scores(80.67, 69.67, 64.00),
    "replace_word": Scores(95.00, 84.00, 95.67),
    "head_tail": Scores(61.0, 38.0, 52.0),
    "full_repeating": Scores(92.0, 70.0, 79.0),
    "head_slicing": Scores(57.0, 51.0, 63.0),
    "multiple_key_retrieval": Scores(92.67, 77.67, 89.00),
    "single_fact": Scores(78.33, 56.33, 59.00),
    "two_facts": Scores(39.33, 26.67, 32.33),
}
GROUPS = {
    "SuperGLUE-IQ": Scores(47.60, 48.19, 46.76),
    "CLUE-IQ": Scores(None, 39.96, 42.07),
    "Rule": Scores(86.03, 71.49, 76.42),
    "Pattern": Scores(70.00, 53.00, 64.67),
    "Anti-interference": Scores(70.11, 53.56, 60.11),
}
NOTES = (
    "the paper's columns are for orientation: its prompts are not published, so these are other questions of the same "
    "kind, each in one language",
    "it does not say whether answers were generated or chosen among options, and which rows were taken",
    "with symbols for labels none of its three models is two standard errors above chance",
)
