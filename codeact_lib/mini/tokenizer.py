"""A tokenizer learnt from texts: that of the mini base model, and those of the benchmarks in `bench/`."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def byte_level_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], single_digits: bool = False
) -> Tokenizer:
    """A byte-level BPE tokenizer learnt from `texts`; the special tokens get the first ids, in their order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if single_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that no text has an unknown byte
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
