"""`python -m flm_jax VERB ...` is `flm VERB ...`."""

import sys

from flm_jax.cli import main

sys.exit(main())
