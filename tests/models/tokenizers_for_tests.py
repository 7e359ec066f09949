"""Tiny tokenizers, built on the spot."""

WORDS = ["a", "the", "man", "woman", "dog", "cat", "is", "not", "sleeping", "running", "outside", "inside"]
WORDS += ["what", "how", "why", "learn", "cook", "swim", ".", "?", "yes", "no"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def word_tokenizer(n_words: int | None = None, token_types: bool = True, padding_id: int = 0):
    """BERT's layout, [CLS] a [SEP] b [SEP], over a few words."""
    import tokenizers
    import transformers

    vocabulary = [*list(SPECIAL.values())[1:], *WORDS]
    vocabulary.insert(padding_id, "[PAD]")
    vocabulary += [f"word{i}" for i in range((n_words or 0) - len(vocabulary))]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary.index(word)) for word in ("[CLS]", "[SEP]")],
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if token_types else [])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **SPECIAL)
