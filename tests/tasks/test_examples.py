import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.examples import Turn, pairs, tokenize
from flm_jax.tasks.packing import cut, pack
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary, wrap_huggingface, wrap_tiktoken

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TURNS = st.lists(
    st.builds(Turn, TEXT, TEXT.filter(bool), st.booleans(), st.booleans(), st.integers(1, 255)), min_size=1, max_size=4
)  # fmt: skip


@pytest.fixture(scope="module", params=["sentencepiece", "tiktoken", "huggingface"])
def any_vocabulary(request: pytest.FixtureRequest, vocabulary: Vocabulary, tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizers")
    if request.param == "tiktoken":
        return wrap_tiktoken("cl100k_base", folder / "tokenizer.model")
    if request.param == "huggingface":
        from tokenizers import Tokenizer, models, pre_tokenizers

        alphabet = {character: number for number, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
        model = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.save(str(folder / "tokenizer.json"))
        return wrap_huggingface(folder / "tokenizer.json", folder / "tokenizer.model")
    return vocabulary


@given(text=TEXT, length=st.integers(2, 40))
def test_every_chunk_joined_gives_back_the_document(
    any_vocabulary: Vocabulary, text: str, length: int
) -> None:
    ids, weights = tokenize([Turn("", text)], any_vocabulary)
    chunks = cut(ids, weights, length)
    assert all(1 <= len(part.tokens) <= length for part in chunks)
    joined = np.concatenate([part.tokens for part in chunks]).tolist()
    assert joined.pop() == EOS_ID and any_vocabulary.decode(joined) == text
    # And out of the sequences that they are packed into: nothing is lost, doubled or changed.
    rows = list(pack(chunks, length))
    packed = sorted(token for row in rows for token in row.tokens[row.segment_ids > 0].tolist())
    assert packed == sorted([*joined, EOS_ID])


@given(turns=TURNS)
def test_loss_is_on_targets_alone_and_each_once(any_vocabulary: Vocabulary, turns: list[Turn]) -> None:
    ids, weights = tokenize(turns, any_vocabulary)
    expected_ids: list[int] = []
    expected_weights: list[int] = []
    for turn in turns:
        inputs, targets = any_vocabulary.encode(turn.inputs), any_vocabulary.encode(turn.targets)
        learnt = [turn.weight] * len(targets)
        if turn.only_last:
            learnt[:-1] = [0] * (len(targets) - 1)
        expected_ids += inputs + targets + [EOS_ID] * turn.ends
        expected_weights += [0] * len(inputs) + learnt + [turn.weight] * turn.ends
    assert ids.tolist() == expected_ids and weights.tolist() == expected_weights
    # Seqio's examples, one a turn: behind each token with loss stands what stands there above.
    found = list(pairs(turns, any_vocabulary))
    assert len(found) == len(turns)
    position = 0
    for inputs, targets in found:
        assert (inputs + targets) == expected_ids[: len(inputs) + len(targets)]
        assert not weights[position : len(inputs)].any()
        position = len(inputs) + len(targets)
        assert weights[len(inputs) : position].all()
    assert position == len(expected_ids)
