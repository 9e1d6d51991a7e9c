"""What can be wrong with a growth, by name."""


class GrowthError(ValueError):
    """A growth cannot be done, or has not done what it promised; the base of the others."""


class UnknownMethodError(GrowthError):
    """No method or operator has this name, or it does not grow this axis."""


class UnsuitableOperatorError(GrowthError):
    """An operator cannot grow this model, or not by this factor."""


class ShrinkingError(GrowthError):
    """The target is smaller than the source in some axis."""


class FixedFieldError(GrowthError):
    """The target differs in what growth cannot change: head_dim, the kind of attention, the parametrisation."""


class UnknownStateError(GrowthError):
    """The optimizer's state has a part of a type whose growth is not known."""


class FunctionChangedError(GrowthError):
    """The grown model computes something else than its source did, beyond what its method may."""


class SymmetryWarning(UserWarning):
    """Copies compute the same, and an optimizer that treats them alike will never tell them apart."""


class MomentsWarning(UserWarning):
    """An optimizer's state has grown as well as its type allows, which may not be right for what is new."""
