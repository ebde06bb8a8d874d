"""What makes two tokenizers the same: their vocabulary and how they cut text."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from logitstore.corpus.tokenizing import vocabulary_size

__all__ = ["tokenizer_fingerprint"]


def tokenizer_fingerprint(tokenizer: Any) -> dict[str, Any]:
    """Identify a Hugging Face tokenizer by content, part by part, so that a mismatch can be explained.

    The same tokenizer saved and loaded again has the same fingerprint. A slow tokenizer has the parts that do not
    depend on its implementation.

    Returns
    -------
    dict
        JSON. ``class``: name of the Python class, for people. ``vocab_size``: the largest token id plus one.
        SHA-256 in hex of each part: ``vocabulary`` (token to id), ``merges`` (None without merges),
        ``special_tokens`` (added tokens, and which are BOS, EOS, UNK, …), ``segmentation`` (normaliser, pre-tokeniser
        and the model's other settings; None for a slow tokenizer). ``digest``: SHA-256 of these four.
        ``chat_template``: SHA-256 of the template, None without one; it is no part of ``digest``, since it
        changes no token's meaning.

    Examples
    --------
    >>> tokenizer_fingerprint(teacher)["digest"] == tokenizer_fingerprint(student)["digest"]  # doctest: +SKIP
    True
    """
    merges, segmentation = _backend_parts(tokenizer)
    parts = {
        "vocabulary": _digest(tokenizer.get_vocab()),
        "merges": None if merges is None else _digest(merges),
        "special_tokens": _digest(_special_tokens(tokenizer)),
        "segmentation": None if segmentation is None else _digest(segmentation),
    }
    template = getattr(tokenizer, "chat_template", None)
    return {
        "class": type(tokenizer).__name__,
        "vocab_size": vocabulary_size(tokenizer),
        "digest": _digest(parts),
        **parts,
        "chat_template": _digest(template) if template else None,
    }


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    added = {
        int(number): [token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized]
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    # Which token pads is a matter of the moment: it is often set to EOS after loading, and changes no text's tokens.
    # Lists are of tokens without a role, under names that differ between versions of transformers; `added` has them.
    roles = {
        role: str(token)
        for role, token in tokenizer.special_tokens_map.items()
        if role != "pad_token" and not isinstance(token, list)
    }
    return {"added": sorted(added.items()), "roles": roles}


def _backend_parts(tokenizer: Any) -> tuple[list[Any] | None, dict[str, Any] | None]:
    """Return merges, and everything else that decides how text is cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None, None
    described = json.loads(backend.to_str())
    model = described["model"]
    merges = model.pop("merges", None)
    # A mapping of tokens to ids is the vocabulary; a Unigram model's list holds the scores as well.
    if isinstance(model.get("vocab"), dict):
        del model["vocab"]
    if merges is not None:
        # Older versions of the library write a pair as one string.
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return merges, {
        "model": model,
        "normalizer": described.get("normalizer"),
        "pre_tokenizer": described.get("pre_tokenizer"),
    }


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
