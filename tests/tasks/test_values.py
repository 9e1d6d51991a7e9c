"""Nested values as TFDS gives them: sized and made plain; a data set whose files are damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources import Tfds
from flm_jax.tasks.sources.values import num_bytes, plain

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
PLAIN = st.recursive(
    TEXT | st.integers(-5, 5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


def _as_tfds(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, dict):
        return {key: _as_tfds(inner) for key, inner in value.items()}
    array = np.empty(len(value), object)
    for index, inner in enumerate(value):
        array[index] = _as_tfds(inner)
    return array


@given(PLAIN)
def test_plain_at_any_depth(value: Any) -> None:
    found = _as_tfds(value)
    assert plain(found, "x") == value
    assert num_bytes(found) == num_bytes(value)


def test_sizes() -> None:
    assert num_bytes({"turns": {"text": np.array([b"ab", b"c"], object), "n": np.zeros(3, np.int32)}}) == 15
    assert num_bytes(["二", 1.5, None]) == 19
    with pytest.raises(Problem, match=r"field 'turns/text' is not UTF-8 \(byte 1\)"):
        plain({"text": [b"a\xff"]}, "turns")


EXAMPLES = [
    {
        "text": f"text {number}",
        "turns": {"role": ["a", "b"], "text": ["x" * 50, "二"]},
        "tags": [["p"], ["q", "r"]],
    }
    for number in range(60)
]


def test_a_real_data_set(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class Nested(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            text = tfds.features.Text()
            turns = tfds.features.Sequence({"role": text, "text": text})
            tags = tfds.features.Sequence(tfds.features.Sequence(text))
            features = tfds.features.FeaturesDict({"text": text, "turns": turns, "tags": tags})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            yield from enumerate(EXAMPLES)

    Nested(data_dir=str(tmp_path)).download_and_prepare()
    source = Tfds("nested:1.0.0", fields=None, data_dir=str(tmp_path))
    found = list(source.read("train", Problems()))
    assert sorted(found, key=lambda one: int(one["text"][5:])) == EXAMPLES
    assert all(record.size > 55 for record in source.records("train"))
    (path,) = tmp_path.glob("nested/1.0.0/*tfrecord*")
    path.write_bytes(path.read_bytes()[:-1000])
    problems = Problems()
    kept = list(source.read("train", problems))
    assert found[: len(kept)] == kept and 0 < len(kept) < 60
    assert problems.count == 1 and problems.records == 60 - len(kept)
    assert f"nested:1.0.0 train, example {len(kept)}: its files are damaged" in problems.places[0]
