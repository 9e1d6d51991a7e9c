"""Scoring beside one pass for each request, and decoding beside one pass for each token, in one run.

    python benchmarks/evaluation.py

The two alone, with their flags: `benchmarks/scoring.py`, `benchmarks/decoding.py`.
"""

import decoding
import scoring


def main() -> int:
    """Both at their defaults."""
    return scoring.main([]) or decoding.main([])


if __name__ == "__main__":
    raise SystemExit(main())
