"""A checkpoint as the `TextModel` that evaluations ask."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flm_jax import partitioning
from flm_jax.config import ModelConfig
from flm_jax.evaluation.scored_rows import BEGINNING, Request
from flm_jax.evaluation.scoring import Scorer
from flm_jax.evaluation.text_model import Score
from flm_jax.generation import Sampling, Writer
from flm_jax.grow.lineage import Lineage
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import load_params

# Of texts encoded: the options of a question, and of many questions the worked examples, have the same context.
_REMEMBERED = 4096


class CheckpointModel:
    """Scores and continues texts by a decoder and its tokenizer.

    Args:
        config: The model.
        params: Its parameters.
        vocabulary: The tokenizer that it was trained with.
        growth: The mask of a model that was saved while it ramped.
        mesh: Whose devices do the work; None is the default device.
        batch_size: Rows at a time, over all devices.
        max_length: Tokens of a row; None is the model's.

    Attributes:
        vocabulary: The tokenizer.
        scorer: What works on its ids.

    Raises:
        ValueError: the tokenizer has more pieces than the model has rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        vocabulary: Vocabulary,
        growth: GrowthMask | None = None,
        mesh: Mesh | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if mesh is not None:  # once, for both that work on them
            params = jax.device_put(params, partitioning.param_shardings(config, mesh))
        self.vocabulary = vocabulary
        self.scorer = Scorer(config, params, growth, mesh, batch_size, max_length)
        self._writer = Writer(config, params, vocabulary, growth, mesh)
        self._max_length, self._batch_size = self.scorer.max_length, batch_size
        self._num_cut = 0  # prompts
        self._encode = functools.lru_cache(_REMEMBERED)(vocabulary.encode)

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        tokenizer: str | Path,
        step: int | None = None,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> "CheckpointModel":
        """From the checkpoint of `step`, or the newest, in a run's directory; `mesh` and `options` are the class's.

        Raises:
            FileNotFoundError: there is no such checkpoint or tokenizer.
            ValueError: the model was trained with another tokenizer.
        """
        vocabulary = Vocabulary(tokenizer)
        metadata, params, found_step = load_params(Path(model_dir), step, mesh)
        metadata.check_tokenizer(vocabulary.sha256, str(tokenizer))
        growth = Lineage.from_json(metadata.growth_record).mask_at(found_step)
        return cls(metadata.config, params, vocabulary, growth, mesh, **options)

    @property
    def notes(self) -> list[str]:
        """What a reader of the results must know."""
        if not self.num_cut:
            return []
        return [
            f"{self.num_cut:,} requests (a question with an option, or to be answered in writing) were longer than "
            f"{self._max_length:,} tokens and lost their beginning"
        ]

    @property
    def num_cut(self) -> int:
        """Requests and prompts so far that were too long for the model and have lost tokens on the left."""
        return self.scorer.num_cut + self._num_cut

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Of each (context, continuation), in the order given; an empty context begins a document."""
        return self.scorer.scores([self._split(*pair) for pair in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each whole text as a document, in nats.

        A text longer than the model's `max_length` is scored in windows of that length: every token once, and in the
        last window behind as much context as fits (lm-eval's `get_rolling_token_windows` with `context_len` 1).
        """
        windows = [list(self._windows(self.vocabulary.encode(text))) for text in texts]
        scores = iter(self.scorer.scores([window for of_text in windows for window in of_text]))
        return [sum(next(scores).log_likelihood for _ in of_text) for of_text in windows]

    def complete(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """What likeliest follows each prompt, up to the first of the strings `stop`, left out.

        Of a prompt that leaves too little room for new tokens the end alone is read.
        """
        return self.sample(prompts, max_new_tokens, stop, Sampling())

    def sample(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
        sampling: Sampling,
        seed: int = 0,
    ) -> list[str]:
        """`complete`, with tokens drawn as `sampling` says."""
        room = self._max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"expected room for a prompt in ModelConfig.max_length = {self._max_length} tokens, found "
                f"{max_new_tokens} new tokens asked for (max_gen_toks, of a benchmark's generation_kwargs; of an IQ "
                "task its longest answer): leave that task out, or take a model with a longer context"
            )
        encoded = [self.vocabulary.encode(prompt) for prompt in prompts]
        self._num_cut += sum(len(tokens) >= room for tokens in encoded)
        kept = [tokens[max(len(tokens) - room + 1, 0) :] for tokens in encoded]
        stop = [end for end in stop if end]
        return self._writer.complete(kept, max_new_tokens, stop, sampling, seed, self._batch_size)

    def _split(self, context: str, continuation: str) -> Request:
        """Ids of the context and of the continuation, as they are when the two are one text.

        Spaces at the context's end belong to the continuation, as lm-eval's models have it (`_encode_pair`): most
        tokenizers keep a space with the word behind it. Where the continuation joins the context's last token, and no
        token would be left, it begins with the token that it joins.
        """
        kept = context.rstrip()
        ids = self._encode(kept)
        whole = self.vocabulary.encode(context + continuation)
        cut = len(ids)
        if continuation and len(whole) <= cut:
            cut = next(
                place for place, pair in enumerate(zip(whole, ids, strict=False)) if pair[0] != pair[1]
            )
        return [BEGINNING, *whole[:cut]], whole[cut:]

    def _windows(self, ids: list[int]) -> Iterator[Request]:
        size = self.scorer.max_length
        for first in range(0, len(ids), size):
            end = min(first + size, len(ids))
            whole = ids[end - size - 1 : end] if first else [BEGINNING, *ids[:end]]
            yield whole[: len(whole) - (end - first)], ids[first:end]
