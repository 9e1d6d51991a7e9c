"""Log-likelihoods are those of one plain forward pass, whatever is computed together and however."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax import Decoder, ModelConfig
from flm_jax.evaluation import prefix_sharing, scoring
from flm_jax.evaluation.scored_rows import Questions, Request
from flm_jax.evaluation.scoring import Scorer
from flm_jax.evaluation.text_model import Score
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.partitioning import MeshShape
from tests.models import LLAMA, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = small_config(dtype="float64", param_dtype="float64")
PADDED = 48


@functools.lru_cache
def forward(config: ModelConfig) -> Any:
    return jax.jit(
        lambda params, tokens, growth: Decoder(config).apply({"params": params}, tokens, growth=growth)
    )


def plain(config: ModelConfig, params: Any, request: Request, growth: GrowthMask | None = None) -> Score:
    """All logits of the one row, a softmax in NumPy's float64."""
    context, continuation = request
    whole = [*(context or [0]), *continuation]
    tokens = np.zeros((1, PADDED), np.int32)
    tokens[0, : len(whole) - 1] = whole[:-1]
    logits = np.asarray(forward(config)(params, tokens, growth), np.float64)[0]
    total, greedy = 0.0, True
    for position, target in enumerate(continuation, len(whole) - 1 - len(continuation)):
        row = logits[position] - logits[position].max()
        total += row[target] - np.log(np.exp(row).sum())
        greedy &= row.argmax() == target
    return Score(total, bool(greedy))


def check(found: list[Score], expected: list[Score], rel: float) -> None:
    assert [score.log_likelihood for score in found] == pytest.approx(
        [score.log_likelihood for score in expected], rel=rel, abs=rel
    )
    assert [score.is_greedy for score in found] == [score.is_greedy for score in expected]


def greedy_tokens(config: ModelConfig, params: Any, context: list[int], count: int) -> list[int]:
    whole = list(context)
    for _ in range(count):
        tokens = np.zeros((1, PADDED), np.int32)
        tokens[0, : len(whole)] = whole
        whole.append(int(forward(config)(params, tokens, None)[0, len(whole) - 1].argmax()))
    return whole[len(context) :]


def questions(seed: int = 0, options: int = 3) -> list[Request]:
    """With two sets of worked examples in common, one-token options, duplicates and what stands alone."""
    draw = np.random.default_rng(seed)
    texts = [[0, *draw.integers(3, 96, 17).tolist()] for _ in range(2)]
    requests: list[Request] = [([], [5, 6]), ([0], [7]), ([], [])]
    for number in range(6):
        context = [*texts[number % 2], *draw.integers(3, 96, draw.integers(1, 9)).tolist()]
        longest = 1 if number < 3 else 7
        requests += [
            (context, draw.integers(3, 96, draw.integers(1, longest + 1)).tolist()) for _ in range(options)
        ]
    return [*requests, requests[5], (draw.integers(3, 96, 30).tolist(), [4])]


token = st.integers(3, 95)
texts = st.lists(token, max_size=8)


@st.composite
def request_sets(draw: st.DrawFn) -> list[Request]:
    """Contexts that begin alike, or are equal or empty; continuations of one token and of several."""
    beginnings = draw(st.lists(texts, min_size=1, max_size=2))
    contexts = [
        [0, *draw(st.sampled_from(beginnings)), *draw(texts)] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(1, 4)))
    ]
    continuation = st.lists(token, min_size=1, max_size=5)
    requests = [(context, draw(continuation)) for context in contexts for _ in range(draw(st.integers(1, 4)))]
    return draw(st.permutations([*requests, requests[0]]))


@pytest.fixture
def x64() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@settings(max_examples=25)
@given(request_sets(), st.sampled_from([1, 3, 8]), st.booleans())
def test_any_requests_have_the_scores_of_plain_passes(
    requests: list[Request], batch_size: int, share: bool
) -> None:
    params = random_params(CONFIG)
    scorer = Scorer(CONFIG, params, batch_size=batch_size, share_prefixes=share)
    check(scorer.scores(requests), [plain(CONFIG, params, request) for request in requests], 1e-12)


@pytest.mark.parametrize("block", [{}, LLAMA], ids=["flm", "llama"])
def test_in_float32_and_every_way_of_sharing(block: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(**block)
    params, requests = random_params(config), questions()
    requests.append((requests[5][0], greedy_tokens(config, params, list(requests[5][0]), 2)))
    expected = [plain(config, params, request) for request in requests]
    assert expected[-1].is_greedy and not expected[0].is_greedy
    check(Scorer(config, params, share_prefixes=False).scores(requests), expected, 1e-5)
    check(Scorer(config, params, batch_size=4).scores(requests), expected, 1e-5)
    batch = prefix_sharing._batch
    for way in ((True, False), (False, True), (True, True)):
        monkeypatch.setattr(prefix_sharing, "_batch", lambda *args, way=way: batch(*args[:4], *way))
        check(Scorer(config, params).scores(requests), expected, 1e-5)


def test_logits_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    params = random_params(config)
    requests: list[Request] = [([0, 5], list(range(10, 10 + length))) for length in (37, 3, 20)]
    expected = [plain(config, params, request) for request in requests]
    monkeypatch.setattr(scoring, "_LOGITS_AT_A_TIME", 12)
    check(Scorer(config, params).scores(requests), expected, 1e-5)


@pytest.mark.parametrize(
    "shape", [MeshShape(data=4, fsdp=2), MeshShape(data=2, fsdp=2, tensor=2)], ids=["data", "tensor"]
)
def test_sharded_is_unsharded(shape: MeshShape) -> None:
    """Scores are whole on every process: replicated."""
    config = small_config()
    params, requests = random_params(config), questions()
    expected = Scorer(config, params).scores(requests)
    scorer = Scorer(config, params, mesh=shape.build(), batch_size=16)
    check(scorer.scores(requests), expected, 1e-5)
    (batch, *_) = prefix_sharing.batches(Questions(requests, 64).rows, 16, 8)
    log_probabilities, greedy = scorer._run(batch, Questions(requests, 64).rows)
    assert log_probabilities.is_fully_replicated and greedy.is_fully_replicated


def test_under_a_growth_mask() -> None:
    config = small_config()
    params, requests = random_params(config), questions()
    mask = GrowthMask(heads=np.array([1, 1, 0.5, 0], np.float32), layers=np.array([1, 0.25], np.float32))
    expected = [plain(config, params, request, mask) for request in requests]
    check(Scorer(config, params, growth=mask).scores(requests), expected, 1e-5)
    assert expected[0].log_likelihood != pytest.approx(
        plain(config, params, requests[0]).log_likelihood, rel=1e-3
    )


def test_what_is_too_long_loses_tokens_on_the_left() -> None:
    config = small_config(max_length=16)
    params = random_params(config)
    whole = list(range(10, 40))
    requests: list[Request] = [([0, *whole[:26]], whole[26:]), ([0, 5], [6])]
    scorer = Scorer(config, params)
    # 16 inputs, and the last target
    expected = [plain(config, params, (whole[-17:-4], whole[-4:])), plain(config, params, requests[1])]
    check(scorer.scores(requests), expected, 1e-5)
    assert scorer.num_cut == 1
    longer = Scorer(config, params, max_length=40)
    check(longer.scores(requests), [plain(config, params, request) for request in requests], 1e-5)
    assert longer.num_cut == 0
    with pytest.raises(ValueError, match=r"continuation of at most 16 tokens.*found 17"):
        scorer.scores([([0], list(range(10, 27)))])
    with pytest.raises(ValueError, match="batch_size and a max_length of at least 1, found 0 and 16"):
        Scorer(config, params, batch_size=0)


def test_equal_inputs_are_one_row() -> None:
    """MMLU's four letters, behind the same question; and the beginnings of what is computed anyway."""
    context = [0, 5, 6, 7]
    asked = Questions([(context, [letter]) for letter in (10, 11, 12, 13)] + [(context, [10, 20])], 64)
    (row,) = asked.rows
    assert row.tokens.tolist() == [0, 5, 6, 7, 10]
    assert {position: list(targets) for position, targets in row.targets.items()} == {
        3: [10, 11, 12, 13],
        4: [20],
    }


def computed(requests: list[Request], **options: Any) -> int:
    """Token positions that a run computes, with padding."""
    rows = Questions(requests, 4096).rows
    return sum(
        level.tokens.size for batch in prefix_sharing.batches(rows, **options) for level in batch.levels
    )


def test_common_beginnings_are_computed_once() -> None:
    draw = np.random.default_rng(0)

    def text(length: int) -> list[int]:
        return draw.integers(3, 96, length).tolist()

    examples = [0, *text(255)]
    contexts = [[*examples, *text(33)] for _ in range(32)]
    letters: list[Request] = [(context, [letter]) for context in contexts for letter in (5, 6, 7, 8)]
    # 33 tokens of each question, in rows of 40, behind 256 once a batch
    assert computed(letters, batch_size=16) == 2 * (256 + 16 * 40)
    assert computed(letters, batch_size=16, share=False) == 2 * 16 * 320
    contexts = [[0, *text(63)] for _ in range(8)]
    endings: list[Request] = [(context, text(20)) for context in contexts for _ in range(4)]
    assert computed(endings, batch_size=32) == 8 * 64 + 32 * 24  # the last word of a context with each ending
    assert computed(endings, batch_size=32, share=False) == 32 * 96
    alone: list[Request] = [([0, *text(31)], [5]) for _ in range(32)]
    assert computed(alone, batch_size=32) == 32 * 32  # nothing in common: nothing is gained by a cache


@given(st.integers(1, 5000), st.sampled_from([2, 4]))
def test_sizes_are_few_and_not_much_larger(count: int, steps: int) -> None:
    size = prefix_sharing.rounded(count, steps)
    assert count <= size and (size < count * (1 + 1 / steps) + 8 or size <= 16)
    assert prefix_sharing.rounded(size, steps) == size


def test_programs_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By other requests, another scorer of the model and on several devices, if the padding is worth it."""
    config = small_config(init_std=0.017)  # whose programs no other test has
    params, mesh = random_params(config), MeshShape(data=4, fsdp=2).build()
    requests = [questions(seed) for seed in range(3)]
    # With one shape that holds all, whatever it costs, there are as many programs as ways of sharing.
    monkeypatch.setattr(scoring, "_SLACK", 1e9)
    sizes = []
    for asked in (*requests, [([0, 5], [7])], requests[0]):
        options: dict[str, Any]
        for options in ({"batch_size": 12}, {"batch_size": 16, "mesh": mesh}):
            scorer = Scorer(config, params, **options)
            check(scorer.scores(asked), [plain(config, params, request) for request in asked], 1e-5)
        sizes.append(scorer._program.run._cache_size())
    assert sizes[-1] == sizes[-2] and sizes[-1] <= 4 + len(requests)
    monkeypatch.setattr(scoring, "_SLACK", 1.0)
    scorer = Scorer(config, params, **options)
    scorer.scores([([0, 5], [7])])
    assert scorer._program.run._cache_size() == sizes[-1] + 1


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5))
def test_a_shape_that_holds_a_batch(parts: int, rows: int, more: int) -> None:
    draw = np.random.default_rng(rows)
    requests: list[Request] = [([0, *draw.integers(3, 96, 9).tolist()], [5, 6]) for _ in range(rows)]
    (batch, *_) = prefix_sharing.batches(Questions(requests, 64).rows, 12 * parts, parts)
    shape = batch.shape
    assert shape.holds(shape) and batch.in_shape(shape).shape == shape
    larger = shape._replace(
        levels=tuple((count + more, length + 2 * more) for count, length in shape.levels),
        cache_length=shape.cache_length + more,
        wanted=(shape.wanted[0] + more, shape.wanted[1]),
    )
    assert larger.holds(shape) and not shape.holds(larger) and larger.cost > shape.cost
    fitted = batch.in_shape(larger)
    assert fitted.shape == larger
    for before, after in zip(batch.levels, fitted.levels, strict=True):
        size = len(before.tokens) // parts
        old = before.tokens.reshape(parts, size, -1)
        new = after.tokens.reshape(parts, size + more, -1)
        assert (new[:, :size, : old.shape[2]] == old).all() and new.sum() == old.sum()
        assert (after.lengths.reshape(parts, -1)[:, :size] == before.lengths.reshape(parts, size)).all()
