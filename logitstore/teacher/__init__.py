"""The teacher: load a causal language model and run it over tokens, row by row, in bounded memory."""

from __future__ import annotations

from logitstore.teacher.batches import plan_batches
from logitstore.teacher.config import TeacherConfig
from logitstore.teacher.decode import Decoding, end_token_ids, require_decoding
from logitstore.teacher.load import load_teacher
from logitstore.teacher.teacher import LogitRows, Teacher

__all__ = [
    "Decoding",
    "LogitRows",
    "Teacher",
    "TeacherConfig",
    "end_token_ids",
    "load_teacher",
    "plan_batches",
    "require_decoding",
]
