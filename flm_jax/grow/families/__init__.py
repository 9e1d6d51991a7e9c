"""The families of operators, one idea a file; `operators.py` names them all."""
