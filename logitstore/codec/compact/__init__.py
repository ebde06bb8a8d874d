"""The ``compact`` codec: ids against a codebook of row classes, values kept bit for bit or quantised with a bound."""

from logitstore.codec.compact.codebook import Codebook, IdBook, ValueBook
from logitstore.codec.compact.codec import Arrangement, IdCodec, ValueCodec
from logitstore.codec.compact.id_training import train_ids
from logitstore.codec.compact.parse import parse
from logitstore.codec.compact.quantise import generalised_kl
from logitstore.codec.compact.registry import codebook_of, find, register
from logitstore.codec.compact.value_training import train_values

__all__ = [
    "Arrangement",
    "Codebook",
    "IdBook",
    "IdCodec",
    "ValueBook",
    "ValueCodec",
    "codebook_of",
    "find",
    "generalised_kl",
    "parse",
    "register",
    "train_ids",
    "train_values",
]
