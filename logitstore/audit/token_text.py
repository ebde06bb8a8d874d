"""Token ids as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from logitstore.container.manifest import Manifest

__all__ = ["TokenText", "load_token_text"]


class TokenText:
    """Text of single tokens, leading spaces included.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Many tokenizers drop the space in front of a text's first token, so every token is decoded behind another.
        anchors = tokenizer.encode("a", add_special_tokens=False)
        self._anchor = list(anchors[-1:])
        self._prefix = self._decode(self._anchor)

    def __call__(self, token: int) -> str:
        """Return the text of a token; its raw name where it has none of its own."""
        text = self._decode([*self._anchor, token])
        if text.startswith(self._prefix) and len(text) > len(self._prefix):
            return text[len(self._prefix) :]
        name = self._tokenizer.convert_ids_to_tokens(token)
        return f"<{token}>" if name is None else str(name)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def load_token_text(manifest: Manifest, tokenizer: str | None) -> tuple[TokenText | None, list[str]]:
    """Load the tokenizer that was asked for, or the teacher's if it is at hand.

    Returns
    -------
    tuple
        The text of tokens, or None, and notes about what was not as it should be.

    Raises
    ------
    InvalidArgumentError
        The tokenizer that was asked for cannot be loaded.
    """
    source = tokenizer or manifest.teacher.get("id")
    if not isinstance(source, str):
        return None, ["the manifest names no teacher; give a tokenizer to see texts instead of ids"]
    import transformers

    try:
        # Looking into a store must not go to the network unless it was asked to.
        loaded = transformers.AutoTokenizer.from_pretrained(source, local_files_only=tokenizer is None)
    except Exception as error:  # the kinds differ between releases of transformers and its hub client
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if tokenizer is not None:
            raise InvalidArgumentError(f"the tokenizer cannot be loaded: {reason}", path=tokenizer) from error
        return None, [f"the teacher's tokenizer is not at hand ({source}); give one to see texts instead of ids"]
    from logitstore.corpus import tokenizer_fingerprint

    known = manifest.tokenizer.get("digest")
    if known is not None and tokenizer_fingerprint(loaded)["digest"] != known:
        return TokenText(loaded), [f"the tokenizer of {source} is not the store's: texts may be wrong"]
    return TokenText(loaded), []
