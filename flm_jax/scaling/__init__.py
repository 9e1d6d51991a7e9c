"""Know before you spend: loss laws, sweeps over hyperparameters on small widths, the coordinate check of µP."""
