"""Loss laws: what they say of a model, and of the tokens it needs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.scaling.laws import LossLaw, SizeLaw

LAWS = st.builds(
    LossLaw,
    E=st.floats(0.5, 3),
    A=st.floats(1, 1e4),
    alpha=st.floats(0.1, 1),
    B=st.floats(1, 1e4),
    beta=st.floats(0.1, 1),
)
PARAMS = st.floats(1e6, 1e12)


@given(LAWS, PARAMS, st.floats(1e6, 1e13))
def test_tokens_inverts_loss(law: LossLaw, params: float, tokens: float) -> None:
    loss = law.loss(params, tokens)
    needed = law.tokens(params, loss)
    assert np.isclose(law.loss(params, needed), loss, rtol=1e-12)
    if law.B / tokens**law.beta > 1e-3 * loss:  # where the loss still tells of the tokens
        assert np.isclose(needed, tokens, rtol=1e-6)


@given(LAWS, PARAMS)
def test_no_number_of_tokens_goes_below_the_floor(law: LossLaw, params: float) -> None:
    floor = law.floor(params)
    assert np.isposinf(law.tokens(params, [floor, 0.9 * floor])).all()
    assert np.isclose(law.loss(params, 1e300), floor)


@given(LAWS, PARAMS, st.floats(1e6, 1e13))
def test_more_of_either_lowers_the_loss(law: LossLaw, params: float, tokens: float) -> None:
    assert law.loss(2 * params, tokens) < law.loss(params, tokens)
    assert law.loss(params, 2 * tokens) < law.loss(params, tokens)


def test_published_numbers() -> None:
    """Hoffmann et al.'s law at their own model: 70e9 parameters, 1.4e12 tokens (their section D.3)."""
    law = LossLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
    by_hand = 1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28
    assert np.isclose(law.loss(70e9, 1.4e12), by_hand) and 1.9 < by_hand < 2.0
    assert np.isclose(SizeLaw(a=2.0, b=-0.5, c=3.0).loss(4.0), 4.0)
