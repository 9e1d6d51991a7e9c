"""A vocabulary as seqio's, for what is no sentencepiece model. Importing this imports TensorFlow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from flm_jax.tasks.tokenizers.reserved import EOS_ID, UNK_ID

if TYPE_CHECKING:
    from flm_jax.tasks.vocabulary import Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """The same ids; pad 0, eos 1, unk 2. Two are equal if their files have the same content.

    `encode_tf` and `decode_tf` call Python (`tf.numpy_function`): they work in tf.data and eagerly, in this process.
    """

    def __init__(self, vocabulary: "Vocabulary") -> None:
        super().__init__()
        self._vocabulary = vocabulary

    @property
    def bos_id(self) -> None:
        """There is none."""
        return None

    @property
    def eos_id(self) -> int:
        """1."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """2."""
        return UNK_ID

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def _encode_tf(self, s: Any) -> Any:
        """A string to int32 `[tokens]`; strings `[n]` to ragged int32 `[n, tokens]`."""
        strings = tf.convert_to_tensor(s)
        if strings.shape.rank == 1:
            return tf.map_fn(
                self._encode_tf, strings, fn_output_signature=tf.RaggedTensorSpec([None], tf.int32)
            )
        ids = tf.numpy_function(self._numpy_ids, [strings], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: Any) -> Any:
        """int32 `[..., tokens]` to strings `[...]`."""
        ids = tf.convert_to_tensor(ids)
        texts = tf.numpy_function(self._numpy_texts, [ids], tf.string)
        texts.set_shape(ids.shape[:-1])
        return texts

    def _numpy_ids(self, text: bytes | np.ndarray) -> np.ndarray:
        # TensorFlow gives bytes inside of a graph, and an array of one object outside.
        content = text.item() if isinstance(text, np.ndarray) else text
        return np.array(self._vocabulary.encode(content.decode("utf-8")), np.int32)

    def _numpy_texts(self, ids: np.ndarray) -> np.ndarray:
        texts = np.empty(ids.shape[:-1], object)
        for place in np.ndindex(texts.shape):
            texts[place] = self._vocabulary.decode(ids[place]).encode("utf-8")
        return texts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self._vocabulary.sha256 == other._vocabulary.sha256

    def __str__(self) -> str:
        model = self._vocabulary
        return f"SeqioVocabulary(kind={model.kind}, size={model.size}, sha256={model.sha256})"
