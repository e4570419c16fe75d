"""Fields of published configs that change no model of any family, and why."""

_GENERATION = "of generating text, not of the model"
_SOFTWARE = "of the software that wrote or reads the file"

IGNORED: dict[str, str] = {
    **dict.fromkeys(("architectures", "model_type"), "they chose the family and the head"),
    **dict.fromkeys(("torch_dtype", "dtype"), "the tensors have their own dtypes, and the caller says which to compute with"),
    **dict.fromkeys(
        (
            "transformers_version", "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "auto_map", "use_cache",
            "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate", "output_past", "torchscript", "use_bfloat16",
            "gradient_checkpointing", "chunk_size_feed_forward", "pruned_heads", "is_encoder_decoder", "add_cross_attention",
            "cross_attention_hidden_size", "tie_encoder_decoder", "tokenizer_class", "prefix",
            "sep_token_id", "finetuning_task", "_num_labels", "tf_legacy_loss",
            "pretraining_tp", "slow_but_exact", "use_return_dict",
        ),
        _SOFTWARE,
    ),
    **dict.fromkeys(
        (
            "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
            "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "forced_bos_token_id", "forced_eos_token_id",
            "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "task_specific_params",
            "decoder_start_token_id",
        ),
        _GENERATION,
    ),
    **dict.fromkeys(("label2id", "problem_type"), "names of classes, and a loss"),
    **dict.fromkeys(("id2label", "num_labels"), "classes, which heads that have some have read"),
    "tie_word_embeddings": "the tensors say whether the head is tied, where there is one",
}  # fmt: skip
