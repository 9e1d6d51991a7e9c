"""What `python -m t5x.train` is given through gin besides the model and the tasks.

Importing a module of this imports t5x, which is in no package registry: nothing outside of this folder does.
"""
