"""Building a store: corpus and teacher in, shards out."""

from logitstore.build.config import BuildConfig
from logitstore.build.flow import BuildProgress
from logitstore.build.generation import GenerationConfig
from logitstore.build.run import BuildSummary, build

__all__ = ["BuildConfig", "BuildProgress", "BuildSummary", "GenerationConfig", "build"]
