"""The small OpenVLA-OFT policies that are trained in this repository: sizes and words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vla_prune.models.config import OpenVLAConfig, TowerConfig

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN)  # their ids are their places


def word_tokenizer(sentences: Iterable[str]) -> Tokenizer:
    """One token per word of the sentences, in alphabetical order, with a start token in front."""
    words = sorted({word for sentence in sentences for word in sentence.lower().split()})
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    tokenizer.enable_padding(pad_id=SPECIAL.index(PAD), pad_token=PAD)
    return tokenizer


def pocket_config(
    words: int,
    views: Sequence[str] = ("agentview", "wrist"),
    chunk: int = 8,
    action_dim: int = 7,
    proprio_dim: int = 8,
    image_size: int = 144,
    tower_layers: int = 1,
) -> OpenVLAConfig:
    """``pocket-libero`` and ``pocket-drive``: views of 144 tokens, six layers of width 128.

    A convolutional tower stands in for the published transformers, because those need far more
    data than a laptop can make; one slot per time step instead of seven keeps the sequence short.

    Args:
        words: vocabulary size.
        views: camera names.
        chunk: actions that one call predicts.
        action_dim: numbers in one action.
        proprio_dim: length of the state.
        image_size: side of a view, pixels; 12 pixels a token.
        tower_layers: residual blocks of the tower.
    """
    return OpenVLAConfig(
        towers=(TowerConfig("conv", image_size, 12, hidden_size=128, layers=tower_layers),),
        llm={
            "vocab_size": words,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            # 0.02 is for wide models: from there a width of 128 needs long to find its attention.
            "initializer_range": 0.088,
            "pad_token_id": SPECIAL.index(PAD),
            "bos_token_id": SPECIAL.index(BOS),
            "eos_token_id": SPECIAL.index(EOS),
        },
        views=tuple(views),
        action_dim=action_dim,
        chunk=chunk,
        form="oft",
        slots_per_step=1,
        proprio_dim=proprio_dim,
        learned_slots=True,
        shifted_read=False,
    )
