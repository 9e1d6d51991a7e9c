"""What loss a loss law predicts for a ledger's run, and for its last model from scratch."""

import dataclasses

from flm_jax.budget.costs import CostTable
from flm_jax.budget.problem import final_loss
from flm_jax.scaling.laws import LossLaw


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Nats per token.

    Attributes:
        grown: Of the run.
        same_tokens: Of its last model from scratch on as many tokens, which costs more.
        same_flops: Of its last model from scratch for as many model FLOPs.
        carryover: kappa of `problem`, of `grown`.
    """

    grown: float
    same_tokens: float
    same_flops: float
    carryover: float

    @staticmethod
    def of(ledger: CostTable, law: LossLaw, carryover: float) -> "Prediction":
        """Of the ledger's stages."""
        rows, scratch = ledger.rows, ledger.from_scratch
        grown = final_loss(law, [row.params for row in rows], [row.tokens for row in rows], carryover)
        tokens = scratch.tokens * ledger.total.model_flops / scratch.model_flops
        return Prediction(
            grown,
            float(law.loss(scratch.params, scratch.tokens)),
            float(law.loss(scratch.params, tokens)),
            carryover,
        )

    def summary(self) -> str:
        """In a sentence."""
        return (
            f"predicted loss (--law, carryover {self.carryover:g}): {self.grown:.4f}; its last model from scratch: "
            f"{self.same_tokens:.4f} on as many tokens, {self.same_flops:.4f} for as many FLOPs"
        )
