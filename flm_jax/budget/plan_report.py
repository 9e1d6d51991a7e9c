"""What a plan says: a verdict, the schedule, its alternatives, its ledger and all that was assumed."""

from typing import Any

from flm_jax.budget.planner import Option, Plan
from flm_jax.table import aligned, number


def verdict(plan: Plan) -> str:
    """In a sentence."""
    if plan.grown is None or plan.grown.loss is None or plan.from_scratch.loss is None:
        return "do not grow here: one stage was asked for, or only one size is in reach"
    grown, scratch = plan.grown.loss, plan.from_scratch.loss
    nats = scratch - grown
    beside = f"{grown:.4f} predicted beside {scratch:.4f} from scratch for at most the same cost"
    worth = f"{abs(nats):.4f} nats {'less' if nats > 0 else 'more'}, worth {plan.gain:.1%} of the budget"
    if plan.grows:
        return f"grow: {beside}; {worth}"
    return f"do not grow here: growing has {beside}; {worth}, expected at least {plan.wish.min_gain:.1%} (--min_gain)"


def break_even(plan: Plan) -> str:
    """What the verdict hangs on."""
    if plan.wish.max_stages == 1:
        return "carryover: not looked at, with one stage"
    if plan.break_even is None:
        return (
            f"carryover: no growth of two stages is worth {plan.wish.min_gain:.1%} of the budget, even if it keeps "
            "all"
        )
    return (
        f"carryover: growing is worth {plan.wish.min_gain:.1%} of the budget where it keeps at least "
        f"{plan.break_even:.2f} of what was learnt (two stages); assumed is {plan.wish.carryover:g}: measure it"
    )


def assumptions(plan: Plan) -> list[str]:
    """What is taken for granted, a line each."""
    wish, law, shape = plan.wish, plan.wish.law, plan.wish.shape
    limit = (
        "any number of tokens"
        if wish.max_tokens == float("inf")
        else f"at most {wish.max_tokens:.4g} tokens (--tokens)"
    )
    lines = [
        f"L(N, D) = {law.E:g} + {law.A:g} / N^{law.alpha:g} + {law.B:g} / D^{law.beta:g} (--law): of runs from scratch "
        "whose learning rate has decayed, on the law's own text and tokenizer; yours differ",
        f"growing keeps the loss, and {wish.carryover:g} (--carryover) of the tokens which the larger model would have "
        "needed for it; ramps and warmups cost nothing else",
        f"every stage has at least {wish.min_share:.0%} of the tokens (--min_share), and each more than one is worth "
        f"at least {wish.min_gain:.1%} of the budget (--min_gain); {limit}",
        f"sizes: shapes, 12 % apart or more, with the proportions of {shape.num_layers} x {shape.d_model:,} x "
        f"{shape.num_heads} heads, heads a multiple of {wish.heads_multiple} (--heads_multiple), vocabulary "
        f"{shape.vocab_size:,}; sequences of {wish.length:,} tokens",
        "all sizes reach the same share of the peak; small ones rarely do",
        *plan.ledger.assumptions,
    ]
    if plan.smallest:
        lines.append(
            "the first shape is the smallest of its family: a --gin_file with a smaller head_dim gives finer steps"
        )
    return lines


def table(plan: Plan) -> str:
    """For people."""
    rows: list[tuple[str, ...]] = [("schedule", "sizes", "tokens", "spent", "loss", "beside advised")]
    rows += [_cells(plan, option) for option in (plan.best, *plan.alternatives)]
    header = ("stage", "parameters", "layers x d_model x heads x d_ff", "steps", "tokens", "share")
    total = sum(plan.best.tokens)
    stages = [
        (
            str(index),
            f"{shape.num_params:,}",
            f"{shape.num_layers} x {shape.d_model:,} x {shape.num_heads} x {shape.d_ff:,}",
            f"{steps:,}",
            f"{tokens:.4g}",
            f"{tokens / total:.0%}",
        )
        for index, (shape, steps, tokens) in enumerate(
            zip(plan.best.shapes, plan.steps, plan.best.tokens, strict=True), 1
        )
    ]
    ledger = plan.ledger.table().split("\nassumed:")[0]
    parts = [
        verdict(plan),
        break_even(plan),
        "",
        aligned([header, *stages]),
        "",
        aligned(rows),
        "",
        ledger,
        "assumed:",
        *(f"  - {line}" for line in assumptions(plan)),
    ]
    return "\n".join(parts)


def to_json(plan: Plan) -> dict[str, Any]:
    """The same numbers."""
    return {
        "verdict": verdict(plan),
        "grow": plan.grows,
        "gain": None if plan.grown is None else plan.gain,
        "break_even_carryover": plan.break_even,
        "plan": plan.best.to_json() | {"steps": list(plan.steps)},
        "from_scratch": plan.from_scratch.to_json(),
        "grown": None if plan.grown is None else plan.grown.to_json(),
        "alternatives": [option.to_json() for option in plan.alternatives],
        "ledger": plan.ledger.to_json(),
        "assumptions": assumptions(plan),
    }


def _cells(plan: Plan, option: Option) -> tuple[str, ...]:
    best, loss = plan.best.loss, option.loss
    return (
        option.name,
        " -> ".join(_short(shape.num_params) for shape in option.shapes),
        " + ".join(_short(tokens) for tokens in option.tokens) or "beyond the budget",
        number(option.spent, ".1%"),
        number(loss, ".4f"),
        "" if loss is None or best is None or option is plan.best else f"{round(loss - best, 4) + 0.0:+.4f}",
    )


def _short(value: float) -> str:
    """16200000000 is 16.2B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
