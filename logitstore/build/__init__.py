"""Building a store: corpus and teacher in, shards out."""

from logitstore.build.config import BuildConfig
from logitstore.build.generation import GenerationConfig
from logitstore.build.run import BuildProgress, BuildSummary, build

__all__ = ["BuildConfig", "BuildProgress", "BuildSummary", "GenerationConfig", "build"]
