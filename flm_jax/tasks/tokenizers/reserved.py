"""What every vocabulary has in the same place: three ids that never come out of text."""

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
# Ids below are reserved: a tokenizer that begins with text at 0 is moved up by so many.
NUM_RESERVED = 3
# What a `tokenizer.json` of ours calls these three: by them it is known to have our ids.
RESERVED_NAMES = ("<|flm_pad|>", "<|flm_eos|>", "<|flm_unk|>")

# FreeLM's teacher signals end a statement in one of these.
TEACHER_LABELS = ("😈", "😡")
