"""The cost tables of FLM-101B (arXiv 2309.03852v3) and what gives their numbers.

Published are the figures as printed, the shapes (of other models in their own papers), tokens, hours and watts. FLM's
two smaller shapes are not: its total is looked for among all shapes of their sizes.
"""

import dataclasses
import itertools

from flm_jax.budget import formula, rates

ZETTA = 1e21
VOCAB_SIZE = 100_352  # of FLM: 100,256 padded; either gives the same digits
LENGTH = 2048
# Tables 1 and 2: stage, billions of tokens, days, sequences a step, steps, TFLOP/s of a GPU.
STAGES = (
    ("16B", 245.37, 9.63, 2304, 52_000, 162),
    ("51B", 39.64, 5.37, 2304, 8_400, 160),
    ("101B", 26.54, 6.54, 2160, 6_000, 165),
)
GPUS = 192
FLM_SHAPE = (80, 10_240)
# Ours of the two others (flm_jax.presets).
PRESETS = ((48, 5_120), (64, 8_192), FLM_SHAPE)
TOTAL = "52.76"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of another paper, and the zetta-FLOPs that FLM-101B's tables print for it.

    Attributes:
        name: Of model and tokens.
        layers, width, vocab_size, length: Of its own paper.
        tokens: Trained on.
        factor: k that the printed figure was made with.
        printed: The figure.
        spread: What is printed behind its plus-minus sign; None where nothing is.
    """

    name: str
    layers: int
    width: int
    vocab_size: int
    length: int
    tokens: float
    factor: int
    printed: str
    spread: str | None = None

    def zetta(self, factor: float | None = None) -> float:
        """Zetta-FLOPs with this k, or with the one that the paper took."""
        k = self.factor if factor is None else factor
        each = formula.flops_per_token(self.layers, self.width, self.vocab_size, self.length, k)
        return each * self.tokens / ZETTA


MODELS = (
    Model("GPT-3 175B, 300B tokens", 96, 12_288, 50_257, 2048, 300e9, 84, "376.41", "53.77"),
    # Printed are 0.003 % more; a vocabulary of 150,784, padded further, would give both figures to the last digit.
    Model("GLM-130B, 400B tokens", 70, 12_288, 150_528, 2048, 400e9, 96, "421.60"),
    Model("GLM-130B, half of them", 70, 12_288, 150_528, 2048, 200e9, 96, "210.80"),
    Model("Llama-2 13B, 2T tokens", 40, 5_120, 32_000, 4096, 2e12, 84, "201.37", "28.77"),
    Model("Llama-2 7B, 2T tokens", 32, 4_096, 32_000, 4096, 2e12, 84, "106.60", "15.23"),
    Model("Llama 13B, 1T tokens", 40, 5_120, 32_000, 2048, 1e12, 84, "94.81", "13.54"),
    Model("Llama 7B, 1T tokens", 32, 4_096, 32_000, 2048, 1e12, 84, "49.54", "7.08"),
)


@dataclasses.dataclass(frozen=True)
class Emissions:
    """A column of table 3.

    Attributes:
        name: Of the model.
        hours: Of devices.
        watts: Of one.
        printed_energy: Thousand kWh.
        printed_carbon: Tonnes of CO2 equivalent.
        intensity: Tonnes a MWh, PUE included, that lie between the two.
        fitted: Whether the intensity was taken from the two.
    """

    name: str
    hours: float
    watts: float
    printed_energy: str
    printed_carbon: str
    intensity: float
    fitted: bool = True


# GPT-3's PUE and grid are Patterson's. FLM's .644 fits a PUE of 1.1 and .585, which is our guess; the others are
# quotients of printed carbon and energy.
EMISSIONS = (
    Emissions("GPT-3", 3.55e6, 330, "1171", "552", rates.PUE * rates.GRID, fitted=False),
    Emissions("Gopher", 3.77e6, 283, "1066", "380", 0.3563),
    Emissions("PaLM", 8.40e6, 378.5, "3179", "271", 0.0853),
    Emissions("GLM-130B", 1.11e6, 400, "444", "257", 0.5790),
    Emissions("Llama-2 70B", 1.72e6, 400, "688", "291", 0.4235),
    Emissions("FLM-101B", 1.01e5, 400, "40", "26", 0.644),
)


def flm_zetta(shapes: tuple[tuple[int, int], ...], factor: float) -> tuple[float, ...]:
    """Zetta-FLOPs of FLM's three stages with these layers and widths."""
    return tuple(
        formula.flops_per_token(layers, width, VOCAB_SIZE, LENGTH, factor) * billions * 1e9 / ZETTA
        for (layers, width), (_, billions, *_) in zip(shapes, STAGES, strict=True)
    )


def params(layers: int, width: int) -> int:
    """Of FLM's block with this shape (`ModelConfig.num_params`)."""
    return 12 * layers * width**2 + 13 * layers * width + VOCAB_SIZE * width + 2 * width


@dataclasses.dataclass(frozen=True)
class Consistent:
    """With one k: the shapes that give the printed total, among how many, and all totals' range."""

    factor: int
    pairs: tuple[tuple[tuple[int, int], ...], ...]
    tried: int
    lowest: float
    highest: float


def consistent(factor: int) -> Consistent:
    """All shapes of whole heads of 128 and 20 to 120 layers whose sizes round to 16B and 51B."""
    every = [(layers, 128 * heads) for heads in range(16, 97) for layers in range(20, 121)]
    small, middle = (
        [shape for shape in every if round(params(*shape) / 1e9) == billions] for billions in (16, 51)
    )
    totals = {
        (one, two, FLM_SHAPE): sum(flm_zetta((one, two, FLM_SHAPE), factor))
        for one, two in itertools.product(small, middle)
    }
    pairs = tuple(shapes for shapes, found in totals.items() if f"{found:.2f}" == TOTAL)
    return Consistent(factor, pairs, len(totals), min(totals.values()), max(totals.values()))


def area_saved() -> float:
    """By nominal sizes: one minus the area under parameters against tokens over that of the last size throughout."""
    area = sum(float(name.removesuffix("B")) * tokens for name, tokens, *_ in STAGES)
    return 1 - area / (101 * sum(tokens for _, tokens, *_ in STAGES))


def days_from_scratch() -> float:
    """All tokens at the last stage's speed."""
    _, tokens, days, *_ = STAGES[-1]
    return sum(each for _, each, *_ in STAGES) / tokens * days


def contradictions() -> list[tuple[str, str]]:
    """Where the paper disagrees with itself: what, and the figures."""
    tokens, days = sum(stage[1] for stage in STAGES), sum(stage[2] for stage in STAGES)
    _, last, _, sequences, steps, _ = STAGES[-1]
    measured = sum(stage[2] * 86_400 * stage[5] * 1e12 * GPUS for stage in STAGES) / ZETTA
    hours = GPUS * 24 * days
    flm_84 = float(TOTAL) * formula.CENTRE / formula.NO_RECOMPUTATION
    gpt_3 = MODELS[0].zetta()
    return [
        ("batch of the last stage",
         f"4.31M tokens in table 1; 2,160 x 2,048 = {sequences * LENGTH / 1e6:.2f}M by table 2, and {last:g}B tokens "
         f"over {steps:,} steps are {last * 1e3 / steps:.2f}M"),
        ("days of training", f"{days:.2f} by table 1; the model card says nearly 26"),
        ("days from scratch", f"76.74 printed; table 1's tokens and days give {days_from_scratch():.2f}"),
        ("share saved", f"72 % printed; {area_saved():.1%} by areas, {1 - days / days_from_scratch():.1%} by days"),
        ("FLOPs of Llama-2 13B", f"210.37 in the text, 201.37 in the table; the formula gives {MODELS[3].zetta():.2f}"),
        ("FLOPs of GLM-130B", f"421.60 printed; its shape with a vocabulary of 150,528 gives {MODELS[1].zetta():.2f}"),
        ("recomputation factor", "72 for FLM-101B, 84 for GPT-3 and Llama, 96 for GLM-130B, side by side in one table"),
        ("FLM over GPT-3", f"{float(TOTAL) / gpt_3:.1%} as printed, {flm_84 / gpt_3:.1%} with 84 for both"),
        ("FLOPs of FLM-101B",
         f"{TOTAL} zetta printed; table 2's TFLOP/s for {days:.2f} days on {GPUS} GPUs are {measured:.1f}"),
        ("GPU-hours", f"1.01e5 in table 3; {GPUS} GPUs x 24 x {days:.2f} days = {hours:,.0f}"),
        ("English tokens", f"under 0.16T in the text; 53.5 % of {tokens:.2f}B is {0.535 * tokens:.1f}B"),
        ("shares of languages", f"53.5 : 46.5 printed; 28.22 of {TOTAL} is {28.22 / float(TOTAL):.2%}"),
        ("energy's unit", "MkWh printed; the numbers are thousands of kWh, two of them cut off where they should be "
         "rounded up"),
    ]  # fmt: skip
