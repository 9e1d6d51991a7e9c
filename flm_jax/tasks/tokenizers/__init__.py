"""What a `Vocabulary` is made of, one module a kind of file: sentencepiece, tiktoken, Hugging Face.

Nothing here imports TensorFlow when it is imported: only `seqio_vocabulary` does, for `as_seqio`.
"""
