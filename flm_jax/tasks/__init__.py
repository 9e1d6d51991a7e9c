"""The data side: where text comes from, how it becomes tokens, prepared files, and the reader of batches.

Nothing here imports TensorFlow when it is imported: only `seqio_task`, TFRecord and TFDS sources do, when used.
"""
