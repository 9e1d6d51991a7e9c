"""The trainer's small runs."""

from tests.training.conftest import no_measuring as no_measuring
from tests.training.conftest import prepared_dir as prepared_dir
