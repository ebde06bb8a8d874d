"""From files and datasets to tokenised documents."""

from logitstore.corpus.config import CorpusConfig, CorpusCounters
from logitstore.corpus.digest import corpus_digest
from logitstore.corpus.documents import SourcedDocument, iter_documents
from logitstore.corpus.keys import record_key, sample_key
from logitstore.corpus.tokenizer_fingerprint import tokenizer_fingerprint
from logitstore.corpus.tokenizing import Tokenizing

__all__ = [
    "CorpusConfig",
    "CorpusCounters",
    "SourcedDocument",
    "Tokenizing",
    "corpus_digest",
    "iter_documents",
    "record_key",
    "sample_key",
    "tokenizer_fingerprint",
]
