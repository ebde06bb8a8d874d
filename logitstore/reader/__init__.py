"""Reading a store: by document, by row, fast and checked."""

from logitstore.reader.rows import Document, Rows
from logitstore.reader.store import Store, open_store

__all__ = ["Document", "Rows", "Store", "open_store"]
