"""The text side: a CLIP tokenizer that knows the caption words, and a two-layer CLIP text model.

The byte-pair merges are learned from the caption words until each word is one token, so that a word's cross-attention
is one column. All bytes are in the vocabulary too: any text can be tokenised.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from probe.canvas.captions import ANYTHING
from probe.canvas.model import MODEL_DIR
from probe.canvas.world import FACTORS

MAX_TOKENS = 16
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = ("a", "on", "in", "background", "style", ANYTHING, ",")


def new_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer, in a fraction of a second."""
    words = sorted({*_WORDS, *(name for names in FACTORS.values() for name in names)})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator((f"{word} " * 8 for word in words), trainer)
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet)]
    tokens += [a + b for a, b in merges if a + b not in set(tokens)]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), _BOS, _EOS])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)  # pyright: ignore[reportArgumentType]
    for word in words:
        if len(ids := tokenizer(word).input_ids) != 3:
            raise RuntimeError(f"tokenizer: {word!r} became {ids}, expected one token between the two ends")
    return tokenizer


def canvas_tokenizer() -> CLIPTokenizer:
    """The shipped tokenizer, or a new one where none has shipped.

    Ties between merges are broken differently from process to process, so a trained model needs the very tokenizer it
    was trained with.
    """
    shipped = MODEL_DIR / "tokenizer"
    return CLIPTokenizer.from_pretrained(shipped, local_files_only=True) if shipped.exists() else new_tokenizer()


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text model: 2 layers, width 64."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.convert_tokens_to_ids(_BOS),  # pyright: ignore[reportArgumentType]
        eos_token_id=tokenizer.convert_tokens_to_ids(_EOS),  # pyright: ignore[reportArgumentType]
        pad_token_id=tokenizer.convert_tokens_to_ids(_EOS),  # pyright: ignore[reportArgumentType]
    )
    return CLIPTextModel(config)
