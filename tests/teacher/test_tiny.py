"""The teacher of the demo trains, and loads like any other."""

from __future__ import annotations

import pytest

from logitstore.errors import InvalidArgumentError
from logitstore.teacher import TeacherConfig, load_teacher
from logitstore.teacher.tiny import train_tiny_teacher

TEXTS = ["the bell rang and the fox ran away from the round shiny bell. " * 20] * 3


def test_it_learns_and_loads(tmp_path):
    steps = []
    loss = train_tiny_teacher(
        TEXTS, tmp_path / "teacher", vocab_size=300, seconds=600, max_steps=30,
        on_step=lambda step, loss, share: steps.append((step, loss, share)),
    )  # fmt: skip
    assert [step for step, _, _ in steps] == list(range(1, 31))
    assert loss < steps[0][1]
    assert all(0 <= share < 1 for _, _, share in steps)
    teacher = load_teacher(TeacherConfig(str(tmp_path / "teacher")))
    assert teacher.vocab_size <= 300
    assert teacher.tokenizer.decode(teacher.tokenizer(TEXTS[0])["input_ids"]) == TEXTS[0]


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="more than 128 tokens"):
        train_tiny_teacher(["short"], tmp_path / "teacher", vocab_size=300)
